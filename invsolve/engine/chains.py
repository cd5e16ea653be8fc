"""Markov chains: running moments, effective sample size, split R-hat, autocorrelation, and whether a chain has mixed.

A chain keeps its running mean and variance per pixel (Welford), and the values of a few fixed patterns, the `probes`,
at every kept draw: low and high spatial frequencies and random directions, for the slow and the fast parts of a chain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.metrics.mixing import ESS_PER_CHAIN, R_HAT, autocorrelation, effective_sample_size, split_r_hat
from invsolve.streams import Row
from operators import generator


def welford(mean: Tensor, m2: Tensor, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of `count` values, the last of which is x, from those of the values before.

    Welford, Technometrics 4, 1962: no cancellation, whatever the mean.
    """
    gap = x - mean
    mean = mean + gap / count
    return mean, torch.addcmul(m2, gap, x - mean)


@lru_cache(maxsize=4)
def probes(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[tuple[str, ...], Tensor]:
    """Names and unit vectors (P, n) of the patterns a chain is watched by, the same for every chain of a shape (*X, H, W).

    Cosines of the last two axes, equal in all channels: the mean ("0,0"), the lowest ("0,1", "1,0"), half the highest and the
    highest frequencies; and two random directions. Fewer where the signal is too small for them.
    """
    height, width = (1, 1, *shape)[-2:]
    high = {(height // 2, width // 2), (height - 1, width - 1)}
    wanted = [(0, 0), (0, 1), (1, 0), *sorted(high)]
    kept = list(dict.fromkeys((u, v) for u, v in wanted if u < height and v < width))
    rows, cols = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width))
    waves = [torch.outer((math.pi * u / height * rows).cos(), (math.pi * v / width * cols).cos()) for u, v in kept]
    vectors = [wave.reshape(wave.shape[-min(len(shape), 2) :]).expand(shape) for wave in waves]
    vectors += [torch.randn(shape, dtype=torch.float64, generator=generator(0, "probe", k)) for k in range(2)]
    with torch.inference_mode(False):
        held = torch.stack([(v / v.norm()).flatten() for v in vectors]).to(device, dtype)
    return (*(f"{u},{v}" for u, v in kept), "random 0", "random 1"), held


def project(x: Tensor) -> Tensor:
    """The values of the probes at x (B, *X), (B, P)."""
    return x.flatten(1) @ probes(tuple(x.shape[1:]), x.dtype, x.device)[1].mT


@dataclass(frozen=True)
class Gathered:
    """What the state of a chain gathers of the draws that it keeps.

    mean (B, *X), m2 (B, *X, sum of squared deviations) and trace (B, draws, P, the values of `probes`).
    """

    statistics: ClassVar[tuple[str, ...]] = ("mean", "m2", "trace")

    mean: Tensor | None = None
    m2: Tensor | None = None
    trace: Tensor | None = None


def nothing(x: Tensor) -> dict[str, Tensor]:
    """The fields mean, m2 and trace of a state whose chains (B, *X) have kept no draw."""
    count = len(probes(tuple(x.shape[1:]), x.dtype, x.device)[0])
    return {"mean": torch.zeros_like(x), "m2": torch.zeros_like(x), "trace": x.new_zeros((len(x), 0, count))}


def draw_number(step: int, steps: int, burn_in: float, thinning: int | None) -> int:
    """Which draw (1, 2, ...) the `step`-th of `steps` is, if one in `thinning` after the burn-in is kept; 0 if it is not kept.

    burn_in is a share of the steps; thinning None keeps about 2000. Raises ValueError if none of the steps would be kept.
    """
    burnt = int(burn_in * steps)
    if (thinning or 1) > steps - burnt:
        raise ValueError(f"thinning={thinning}; none of the {steps - burnt} steps after the burn-in would be kept")
    count, rest = divmod(step - burnt, thinning or max(1, (steps - burnt) // 2000))
    return count if count > 0 and rest == 0 else 0


def keep(state: Any, count: int) -> Any:
    """The state with its iterate x as the `count`-th draw that is kept, in mean, m2 and trace.

    The state as it is for count = 0, and where it has no statistics.
    """
    if state.trace is None or count == 0:
        return state
    mean, m2 = welford(state.mean, state.m2, state.x, count)
    return dataclasses.replace(state, mean=mean, m2=m2, trace=torch.cat([state.trace, project(state.x)[:, None]], 1))


@dataclass(frozen=True)
class ChainReport:
    """What the chains of one image say together.

    mean, std: over all kept draws of all chains, (*X). chains, draws (kept, of each): their numbers. names: of the
    probes; ess (of all chains together) and r_hat: per probe. autocorrelation: of the slowest and of the fastest probe, over
    lags in kept draws, averaged over the chains. constants: L, L_y, delta and lambda of each chain, (chains, 4).
    """

    mean: Tensor
    std: Tensor
    chains: int
    draws: int
    names: tuple[str, ...]
    ess: Tensor
    r_hat: Tensor
    autocorrelation: dict[str, Tensor]
    constants: Tensor

    @property
    def mixed(self) -> bool:
        """Whether every probe has R-hat <= 1.1 and at least 10 effective draws a chain."""
        return bool((self.r_hat <= R_HAT).all() and (self.ess >= ESS_PER_CHAIN * self.chains).all())

    @property
    def numbers(self) -> dict[str, float]:
        """The figures of a table: worst ESS and R-hat, and the slowest and fastest autocorrelation times in kept draws."""
        times = self.chains * self.draws / self.ess
        return {
            "ess": float(self.ess.amin()),
            "r_hat": float(self.r_hat.amax()),
            "iact_slow": float(times.amax()),
            "iact_fast": float(times.amin()),
            "delta": float(self.constants[:, 2].mean()),
        }

    @property
    def verdict(self) -> str:
        """One line for a person: whether the chains have mixed, the figures, and else what to do."""
        n, name = self.numbers, self.names[int(self.ess.argmin())]
        text = f"{self.chains} x {self.draws} draws kept, ESS {n['ess']:.0f} (slowest probe: {name}), R-hat {n['r_hat']:.2f}"
        if self.mixed:
            return f"the chains have mixed: {text}"
        if not math.isfinite(n["ess"]):
            return f"NOT MIXED: {text}; there are too few draws to tell, or the chain stands still: take more steps"
        more = max(2, math.ceil(ESS_PER_CHAIN * self.chains / n["ess"]))
        return f"NOT MIXED: {text}; take at least {more} times as many steps, or a start nearer to the posterior"


class Chains:
    """An observer that reports on the chains of each image once they are done: `sample(..., observe=chains)`.

    Nothing is read while the chains run, for what the report needs is gathered in their state, on the device.
    """

    def __init__(self) -> None:
        self._ended: dict[int | str, dict[int, dict[str, Tensor]]] = {}

    def __call__(self, event: Any) -> None:
        """Nothing is needed of a single step."""

    def finish(self, rows: Sequence[Row], state: Mapping[str, Any]) -> None:
        """Takes the last state of a chunk: fields mean, m2 (R, *X), trace (R, N, P), constants (R, 4); none of another sampler."""
        if "trace" not in state:
            return
        held = {name: state[name].detach().cpu() for name in ("mean", "m2", "trace", "constants")}
        for r, (image, k) in enumerate(rows):
            self._ended.setdefault(image, {})[k] = {name: value[r] for name, value in held.items()}

    @property
    def ids(self) -> list[int | str]:
        """Images whose chains are done."""
        return list(self._ended)

    def report(self, id: int | str = 0) -> ChainReport:
        """What the chains of an image say. Raises ValueError for an unknown id, or if nothing was kept after the burn-in."""
        if id not in self._ended:
            raise ValueError(f"no chain of {id!r} has ended; there are: {', '.join(map(repr, self.ids)) or 'none'}")
        chains = [chain for _, chain in sorted(self._ended[id].items())]
        means, m2, traces, constants = (torch.stack([c[name] for c in chains]) for name in ("mean", "m2", "trace", "constants"))
        count, draws, _ = traces.shape
        if draws == 0:
            raise ValueError("no draw was kept: take more steps, a smaller burn_in or less thinning")
        mean = means.mean(0)
        spread = m2.sum(0) + draws * (means - mean).square().sum(0)
        traces = traces.double()
        ess = effective_sample_size(traces)
        rho = autocorrelation(traces.movedim(1, -1)).mean(0)
        order = {"slow": int(ess.argmin()), "fast": int(ess.argmax())}
        return ChainReport(
            mean=mean,
            std=(spread / max(count * draws - 1, 1)).sqrt(),
            chains=count,
            draws=draws,
            names=probes(tuple(mean.shape), mean.dtype, mean.device)[0],
            ess=ess,
            r_hat=split_r_hat(traces),
            autocorrelation={name: rho[p] for name, p in order.items()},
            constants=constants,
        )

    # -- what a run writes of it -------------------------------------------------------------------------------------------

    def moments(self, ids: Sequence[int | str]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the chains of each image, (B, *X) each, in float32."""
        found = [self.report(id) for id in ids]
        return torch.stack([f.mean.float() for f in found]), torch.stack([f.std.float() for f in found])

    def numbers(self, id: int | str) -> dict[str, float]:
        """`ChainReport.numbers` of an image."""
        return self.report(id).numbers

    def verdict(self, id: int | str) -> str:
        """The verdict on the chains of an image."""
        return self.report(id).verdict
