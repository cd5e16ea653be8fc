"""What watches a trajectory: the event given to observers, the progress bar, and the guard against divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.errors import Divergence
from invsolve.levels import Move
from invsolve.streams import Row


@dataclass
class _Reading:
    """Largest |x| and the discrepancy of each row (``known``: there was one), on their way to the host."""

    move: Move
    values: Tensor
    event: Any
    known: bool


class Monitor:
    """Reads the state every few steps without stalling the device, refreshes the bar, and stops diverging runs.

    On CUDA the reading of one refresh is copied asynchronously and looked at in the next, so no step waits for it. ``tell``
    receives the move, the rows and their discrepancies, where there is a measurement and an x0_hat.
    """

    def __init__(
        self, target: Any, rows: Sequence[Row], bar: Any, steps: Sequence[Move], refreshes: int = 20, remedy: str = "take more steps",
        tell: Callable[[Move, Sequence[Row], Sequence[float]], None] | None = None,
    ) -> None:  # fmt: skip
        self.target, self.rows, self.bar, self.remedy, self.tell = target, rows, bar, remedy, tell
        self.every = max(1, len(steps) // refreshes)
        known = getattr(target.prior, "magnitude", None)
        # Where the prior does not say: the first noise level drowns the signal, so the signal is no larger than it.
        self.magnitude: float = steps[0].t.ratio if known is None else known
        self._pending: _Reading | None = None

    def step(self, move: Move, x: Tensor, x0: Tensor | None) -> None:
        """To be called after every step. Raises Divergence."""
        if self.bar is not None:
            self.bar.update(1)
        if move.index % self.every and move.index != move.total - 1:
            return
        largest = x.flatten(1).abs().amax(1)
        likelihood = getattr(self.target, "likelihood", None)
        misfit = self._misfit(likelihood, x0) if likelihood is not None and x0 is not None else None
        values = torch.stack([largest, torch.zeros_like(largest) if misfit is None else misfit.to(largest)])
        previous, self._pending = self._pending, self._send(move, values, misfit is not None)
        if previous is not None:
            self._read(previous)
        if move.index == move.total - 1 or self._pending.event is None:
            self.close()

    def _misfit(self, likelihood: Any, x0: Tensor) -> Tensor:
        """The discrepancy of each row; what is decoded for it is no call of the sampler."""
        calls = getattr(self.target.prior, "calls", None)
        before = getattr(calls, "decode", None)
        misfit: Tensor = likelihood.discrepancy(x0)
        if before is not None:
            calls.decode = before  # type: ignore[union-attr]
        return misfit

    def close(self) -> None:
        """Reads what is still under way."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._read(pending)

    @staticmethod
    def _send(move: Move, values: Tensor, known: bool) -> _Reading:
        if values.device.type != "cuda":
            return _Reading(move, values, None, known)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _Reading(move, host, event, known)

    def _read(self, reading: _Reading) -> None:
        if reading.event is not None:
            reading.event.synchronize()
        largest, misfit = reading.values.tolist()
        if self.tell is not None and reading.known:
            self.tell(reading.move, self.rows, misfit)
        if self.bar is not None and self.target.likelihood is not None:
            self.bar.set_postfix_str(f"residual/noise {sum(misfit) / len(misfit):.2f}", refresh=False)
        t = reading.move.t
        # Under way a guided trajectory may swing; its last iterate is the result.
        limit = 30 * self.magnitude if reading.move.last else 100 * (max(t.alpha, 1.0) * self.magnitude + t.sigma)
        values = zip(largest, misfit, strict=True)
        if beyond := [r for r, (size, off) in enumerate(values) if not (size <= limit and math.isfinite(off))]:
            raise Divergence(self._message(reading.move, beyond, largest[beyond[0]], misfit[beyond[0]]))

    def _message(self, move: Move, beyond: Sequence[int], size: float, off: float) -> str:
        """Of the rows beyond all bounds at this step: those of the first one's image, and the size and misfit of that one."""
        image = self.rows[beyond[0]][0]
        which = [str(k) for name, k in (self.rows[r] for r in beyond) if name == image]
        level = f"level alpha={move.t.alpha:.4g} sigma={move.t.sigma:.4g}"
        samples = f"sample{'s' if len(which) > 1 else ''} {', '.join(which)}"
        where = f"image {image!r}, {samples}: step {move.index + 1} of {move.total}, {level}"
        if off > 10:
            cause = f"the residual is far above the noise: the guidance step is probably too large ({self.remedy})"
        elif getattr(self.target.prior, "precision", "float32") != "float32":
            cause = "the network runs in reduced precision; try precision=float32"
        elif self.target.likelihood is None:
            cause = "the kernel may be unstable on this schedule (take more steps, or another kernel)"
        else:
            cause = f"the guidance step may be too large ({self.remedy}), or the schedule may leave the levels the prior was trained on"
        return f"diverged at {where}: largest |x| is {size:.3g}. Likely cause: {cause}"
