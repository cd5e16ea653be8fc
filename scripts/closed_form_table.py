"""The README's table of biases: every posterior sampler on two problems in the plane whose posteriors are known.

    python scripts/closed_form_table.py --json runs/closed_form.json     # all rows, some minutes; run again to continue
    python scripts/closed_form_table.py --rows DAPS --draws 4000

The problems are those of invsolve.diagnostics.problems. On the Gaussian one (R1) the law of a sampler whose steps are affine is computed
(`output_law`), and otherwise estimated. On the mixture, per sampler:

- first mode: the share of the draws that lie in the first mode;
- modes, mean: distance of the mean of a mode's draws from the exact one, in exact standard deviations, the larger of the two;
- modes, spread: lowest and highest variance in any direction and mode, over the exact one;
- all, mean and all, spread: the same of the draws as a whole.

A row is a line of ROWS; `latent=True` puts the problem behind an autoencoder that changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tables_common import Kept, command_line, needed
from tables_common import Row as Result
from torch import Tensor

from invsolve import Posterior
from invsolve.diagnostics.affine import output_law
from invsolve.diagnostics.problems import modes, problem_mixture, problem_r1
from invsolve.priors import GaussianMixturePrior, LatentPrior, LinearAutoencoder
from invsolve.samplers import DAPS, DPS, MCG, P2L, PSLD, PnPULA, ReSample
from invsolve.schedules import DDPM, Karras, moves

DRAWS = 20_000


@dataclass(frozen=True)
class Row:
    """A sampler, how it walks, and whether its steps are affine on Gaussian problems."""

    label: str
    sampler: Any
    schedule: Any
    affine: bool = True
    latent: bool = False


# The published levels of DAPS, as in configs/schedule/daps_official.yaml.
ANNEALED = Karras(steps=200, sigma_max=100.0, sigma_min=0.10604018929603103)
ROWS = [
    Row('`DPS(variant="squared")`, DDPM 1000', DPS(variant="squared"), DDPM(steps=1000)),
    Row("`DPS()`, DDPM 1000", DPS(), DDPM(steps=1000), affine=False),
    Row("`MCG(weight=0)`, DDPM 100", MCG(weight=0), DDPM(steps=100)),
    Row('`MCG(weight=0.03, gradient="squared")`, DDPM 100', MCG(weight=0.03, gradient="squared"), DDPM(steps=100)),
    Row("`DAPS()`, the 200 published levels", DAPS(), ANNEALED),
    Row('`DAPS(estimate="ode")`, the same levels', DAPS(estimate="ode"), ANNEALED),
    Row('`DAPS(inner="langevin")`, the same levels', DAPS(inner="langevin"), ANNEALED),
    Row('`DAPS(inner="hmc")`, the same levels', DAPS(inner="hmc"), ANNEALED, affine=False),
    Row("`PnPULA()`, chain of 2000", PnPULA(), DDPM(steps=100)),
    Row('`PnPULA(constraint="projected")`, chain of 2000', PnPULA(constraint="projected"), DDPM(steps=100)),
    Row('`PnPULA(kernel="skrock")`, chain of 500', PnPULA(kernel="skrock", steps=500), DDPM(steps=100)),
    Row("`ReSample(skip=2)`, DDPM 100", ReSample(skip=2), DDPM(steps=100), affine=False, latent=True),
    Row("`ReSample(skip=2, final=False)`, DDPM 100", ReSample(skip=2, final=False), DDPM(steps=100), affine=False, latent=True),
    Row("`PSLD()`, DDPM 100", PSLD(), DDPM(steps=100), affine=False, latent=True),
    Row("`P2L(K=0)`, DDPM 100", P2L(K=0), DDPM(steps=100), affine=False, latent=True),
]


@dataclass(frozen=True)
class Figures:
    """What a row of the table says, and standard errors (0 where the law is computed)."""

    label: str
    calls: tuple[int, int]
    second: float
    second_error: float
    variances: tuple[float, float]
    variance_errors: tuple[float, float]
    weight: float
    weight_error: float
    mode_mean: float
    mode_spread: tuple[float, float]
    mean: float
    spread: tuple[float, float]


class Counting:
    """A prior that counts its calls, and how many of them are gone through backwards."""

    def __init__(self, prior: Any):
        self.prior, self.forward, self.backward = prior, 0, 0

    def denoise(self, x: Tensor, t: Any) -> Tensor:
        self.forward += 1
        out: Tensor = self.prior.denoise(x, t)
        if out.requires_grad:
            out.register_hook(self._passed)
        return out

    def _passed(self, grad: Tensor) -> None:
        self.backward += 1

    def select(self, index: Tensor) -> Counting:
        return self

    def __getattr__(self, name: str) -> Any:
        # No variance is learned, so that every call is a `denoise`.
        if name == "denoise_with_variance":
            raise AttributeError(name)
        return getattr(self.prior, name)


class OneStream:
    """Noise for thousands of rows from one generator, for a stream for each takes most of the time."""

    def __init__(self, rows: int, seed: int):
        self.rows, self.source = rows, torch.Generator().manual_seed(seed)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(self.rows, *shape, dtype=torch.float64, generator=self.source)


def draw(row: Row, posterior: Posterior, n: int, seed: int = 0) -> tuple[Tensor, tuple[int, int]]:
    """n draws (n, 2) of a row's sampler, and the forward and backward passes of the prior that each took."""
    counting = Counting(posterior.prior)
    prior: Any = counting
    if row.latent:
        prior = LatentPrior(counting, LinearAutoencoder(torch.eye(2, dtype=torch.float64), (2,), (2,)))
    with torch.no_grad():
        target = Posterior(prior, posterior.likelihood).in_prior_space().select(torch.zeros(n, dtype=torch.long))
        steps = row.sampler.plan(row.schedule) if hasattr(row.sampler, "plan") else moves(row.schedule)
        noise = OneStream(n, seed)
        state = row.sampler.init(target, noise.normal((2,)) * steps[0].t.sigma)
        # What a chain gathers of its draws would fill the memory.
        state = dataclasses.replace(state, **dict.fromkeys(getattr(state, "statistics", ())))
        for move in steps:
            state = row.sampler.step(target, state, move, noise)
        return prior.decode(row.sampler.result(state)), (counting.forward, counting.backward)


def compare(mean: Tensor, cov: Tensor, exact_mean: Tensor, exact_cov: Tensor) -> tuple[float, tuple[float, float]]:
    """Distance of the mean in exact standard deviations, and lowest and highest ratio of variances in any direction."""
    root = torch.linalg.cholesky(exact_cov)
    gap = torch.linalg.solve_triangular(root, (mean - exact_mean)[:, None], upper=False)
    half = torch.linalg.solve_triangular(root, cov, upper=False)
    ratios = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    return float(gap.norm()), (float(ratios[0]), float(ratios[-1]))


def mixture_figures(draws: Tensor, exact: GaussianMixturePrior) -> dict[str, Any]:
    """The part of `Figures` about the mixture, from draws (N, 2)."""
    found, means = modes(draws, exact), exact.means.reshape(-1, 2)
    each = [compare(found.means[k], found.covs[k], means[k], exact.covs[k]) for k in range(len(means))]
    mean, spread = compare(draws.mean(0), torch.cov(draws.mT), exact.mean.reshape(-1), exact.cov.reshape(2, 2))
    w = float(found.weights[0])
    return {
        "weight": w,
        "weight_error": math.sqrt(w * (1 - w) / len(draws)),
        "mode_mean": max(gap for gap, _ in each),
        "mode_spread": (min(r[0] for _, r in each), max(r[1] for _, r in each)),
        "mean": mean,
        "spread": spread,
    }


def r1_figures(row: Row, n: int, seed: int = 0) -> dict[str, Any]:
    """The part of `Figures` about R1."""
    if row.affine and not row.latent:
        mean, cov = output_law(row.sampler, problem_r1(), row.schedule)
        errors = 0.0, 0.0, 0.0
    else:
        draws, _ = draw(row, problem_r1(), n, seed)
        mean, cov = draws.mean(0), torch.cov(draws.mT)
        # Those of Gaussian draws, which these nearly are.
        errors = math.sqrt(float(cov[1, 1]) / n), float(cov[0, 0]) * math.sqrt(2 / n), float(cov[1, 1]) * math.sqrt(2 / n)
    variances = float(cov[0, 0]), float(cov[1, 1])
    return {"second": float(mean[1]), "second_error": errors[0], "variances": variances, "variance_errors": errors[1:]}


def figures(row: Row, n: int = DRAWS, seed: int = 0) -> Figures:
    """All figures of a row from n draws."""
    draws, calls = draw(row, problem_mixture(), n, seed)
    return Figures(row.label, calls, **r1_figures(row, n, seed), **mixture_figures(draws, problem_mixture().exact()))


def line(f: Figures) -> str:
    """A row of the table in Markdown."""

    def with_error(value: float, error: float, digits: int) -> str:
        return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")

    def range_of(pair: tuple[float, float]) -> str:
        return f"{pair[0]:.2f} to {pair[1]:.2f}"

    cells = [f.label, *map(str, f.calls), with_error(f.second, f.second_error, 3)]
    cells.append(", ".join(with_error(v, e, d) for v, e, d in zip(f.variances, f.variance_errors, (4, 3), strict=True)))
    cells += [f"{f.weight:.3f}", f"{f.mode_mean:.2f}", range_of(f.mode_spread), f"{f.mean:.2f}", range_of(f.spread)]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| sampler | forward | backward | second mean | variances | first mode | modes, mean | modes, spread | all, mean | all, spread |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def exact_lines(n: int) -> str:
    """The rows of the exact posteriors, and of n draws of them, which show what is sampling error."""
    r1, mixture = problem_r1().exact(), problem_mixture().exact()
    second, variances, weight = float(r1.mean.flatten()[1]), (float(r1.cov[0, 0]), float(r1.cov[1, 1])), float(mixture.weights.flatten()[0])
    cells = ["exact posterior", "", "", f"{second:.3f}", f"{variances[0]:.4f}, {variances[1]:.3f}", f"{weight:.3f}"]
    drawn = mixture_figures(mixture.draw(n).reshape(n, 2), mixture)
    control = Figures("exact draws", (0, 0), second, 0.0, variances, (0.0, 0.0), **drawn)
    return "| " + " | ".join([*cells, "0", "1", "0", "1"]) + " |\n" + line(control)


def readme(rows: Sequence[Result]) -> str:
    """The README's table. Raises Incomplete."""
    held = [{k: v for k, v in needed(rows, {"label": row.label, "draws": DRAWS}).items() if k != "draws"} for row in ROWS]
    return "\n".join([HEAD, exact_lines(DRAWS), *(line(Figures(**one)) for one in held)])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--rows", default="", help="only those whose label holds this text")
    args = parser.parse_args()
    start, kept, lines = time.perf_counter(), Kept(args.json), []
    for row in ROWS:
        if args.rows in row.label:
            key = {"label": row.label, "draws": args.draws}
            held = kept.row(key, lambda row=row: dataclasses.asdict(figures(row, args.draws)))
            lines.append(line(Figures(**{k: v for k, v in held.items() if k != "draws"})))
    print("\n".join([HEAD, exact_lines(args.draws), *lines]))
    print(f"\n{args.draws} draws for each row, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
