"""Is a sampler calibrated? Measured on problems whose truths are drawn and whose posteriors are known; needs no data set.

Pairs (x, y) are drawn from a `Problem`, the sampler draws from p(x | y), and its draws are held against the truths (ranks,
coverage, spread against error: for any operator and noise) and, under a linear operator and Gaussian noise, against
`Posterior.exact()`. The same is done with exact draws, which shows what sampling error alone gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.diagnostics.problems import Problem, axes, nearest_mode
from invsolve.engine.loop import sample
from invsolve.engine.protocol import Sampler
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.metrics import closeness, ranks, scores
from invsolve.metrics.scores import Average, average
from invsolve.posterior import Posterior
from invsolve.priors.gaussian import StationaryGaussianPrior
from invsolve.schedules import Schedule
from operators import generator

Draw = Callable[[Posterior, int, int], Tensor]
"""Called with a posterior of B rows, n and a seed: draws (B, n, *X)."""

MEASURED, OPEN = "what y measures", "what y leaves open"
LEVELS = (0.5, 0.9)
# An upper bound of the number of judgements on a problem, among which the level is divided (Bonferroni).
_CHECKS = 24


def sampler_draws(sampler: Sampler, schedule: Schedule, progress: bool = False) -> Draw:
    """The draws of a sampler that walks a schedule."""
    return lambda posterior, n, seed: sample(sampler, posterior, schedule, n=n, seed=seed, progress=progress)


@dataclass(frozen=True)
class Finding:
    """One measure of one problem.

    ``value`` with its standard error over images, ``control``, the same of exact draws, and what is accepted: ``low`` to
    ``high`` (the tolerance or the sampling error, whichever is wider); of ranks the largest distance of their distribution from the
    uniform one, and its ``p``.
    ``off``: neither tolerance nor chance explains it. What is not judged has neither.
    """

    key: str
    label: str
    value: float
    error: float | None = None
    control: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    off: bool = False


@dataclass(frozen=True)
class Calibration:
    """What was found on one problem: the `findings`, `passed`, and `verdict`, a sentence for a person."""

    problem: str
    images: int
    draws: int
    measured: tuple[int, int] | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is off."""
        return not any(f.off for f in self.findings)

    @property
    def reasons(self) -> list[str]:
        """What is off and by how much, a phrase each; empty if nothing is."""
        return [] if self.passed else _reasons(self.findings)

    @property
    def verdict(self) -> str:
        """One line: calibrated, or what is wrong and by how much."""
        return "calibrated" if self.passed else "not calibrated: " + "; ".join(self.reasons)

    def __getitem__(self, key: str) -> Finding:
        return next(f for f in self.findings if f.key == key)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = dataclasses.asdict(self)
        return {**found, "findings": [dict(f) for f in found["findings"]], "passed": self.passed, "verdict": self.verdict}


@dataclass(frozen=True)
class _Rules:
    """The accepted relative error of a standard deviation, from which all tolerances follow, and the chance of a false alarm."""

    tolerance: float
    level: float

    @property
    def share(self) -> float:
        return self.level / _CHECKS

    @property
    def z(self) -> float:
        return math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - self.share, dtype=torch.float64)))

    def near(self, key: str, label: str, found: Average, control: Average | None, expected: float, tolerance: float) -> Finding:
        """A mean that should be near the expected value."""
        value, error = float(found.mean), float(found.stderr)
        slack = max(tolerance, self.z * error)
        off = not abs(value - expected) <= slack
        held = None if control is None else float(control.mean)
        return Finding(key, label, value, error, held, expected - slack, expected + slack, off=off)

    def variants(self, x: Tensor) -> list[Tensor]:
        """Draws as they are, and with their spread changed by the tolerance either way."""
        if not self.tolerance:
            return [x]
        mean = x.mean(1, keepdim=True)
        return [x, *(mean + factor * (x - mean) for factor in (1 + self.tolerance, max(1 - self.tolerance, 0.0)))]

    def uniform(self, key: str, label: str, found: Sequence[ranks.Uniformity], control: ranks.Uniformity | None, q: int = 0) -> Finding:
        """Ranks of quantity q of the `variants`: off if none is uniform. An error in all directions adds up in a norm, say."""
        off = all(float(one.p[q]) < self.share for one in found)
        held = None if control is None else float(control.deviation[q])
        return Finding(key, label, float(found[0].deviation[q]), control=held, p=float(found[0].p[q]), off=off)


def calibrate(
    draw: Draw, problem: Problem, *, images: int = 128, draws: int = 39, seed: int = 0, tolerance: float = 0.1, level: float = 0.01
) -> Calibration:
    """Holds a sampler against truths, and against the exact posterior where it is known.

    Args:
        draw: see `sampler_draws`; or any function of (posterior, n, seed).
        problem: what truths and measurements are drawn from; see `invsolve.diagnostics.problems`.
        images: pairs (x, y), at least 32.
        draws: for each of them, at least 7; 39 have intervals of exactly 0.5 and 0.9.
        seed: of truths, noise and sampling.
        tolerance: accepted relative error of a standard deviation, and error of a mean in standard deviations. Coverage that
            such draws would have is accepted too, and ranks that are uniform once the spread is changed by so much.
        level: the chance that an exact sampler is called off, on all measures of the problem together.

    Raises ValueError for settings out of range and draws of a wrong shape, and what the sampler raises.
    """
    for name, value, least in (("images", images, 32), ("draws", draws, 7)):
        if value < least:
            raise ValueError(f"{name} = {value}: at least {least} are needed")
    if not tolerance >= 0 or not 0 < level < 1:
        raise ValueError(f"tolerance = {tolerance}, level = {level}: a number >= 0 and one in (0, 1) are needed")
    rules = _Rules(tolerance, level)
    x, posterior = problem.simulate(images, seed)
    exact = _Exact(posterior, draws, seed) if _is_exact(posterior) else None
    found = draw(posterior, draws, seed)
    if tuple(found.shape) != (images, draws, *x.shape[1:]):
        raise ValueError(f"the draws have shape {tuple(found.shape)}; {(images, draws, *x.shape[1:])} is needed")
    if not bool(torch.isfinite(found).all()):
        raise ValueError("the draws hold NaN or infinite values")
    found = found.to(x)
    findings = list(_against_exact(found, exact, rules)) if exact else []
    findings += _against_truths(found, x, posterior, exact, rules, seed)
    measured = None if exact is None else (int(exact.axes.measured.sum()), x[0].numel())
    return Calibration(problem.name, images, draws, measured, tuple(findings))


def _is_exact(posterior: Posterior) -> bool:
    likelihood = posterior.likelihood
    return isinstance(likelihood, GaussianLikelihood) and likelihood.operator.linear and likelihood.sigma > 0


class _Exact:
    """The exact posterior of B rows, twice n draws from it, and what is measured relative to it."""

    def __init__(self, posterior: Posterior, n: int, seed: int):
        exact = posterior.exact()
        likelihood = posterior.likelihood
        prior: Any = posterior.prior
        rows, size = len(likelihood.y), exact.covs.shape[-1]
        self.weights = exact.weights.reshape(-1, len(exact.covs)).expand(rows, -1)
        self.means = exact.means.reshape(rows, -1, size)
        self.covs, self.roots = exact.covs, torch.linalg.cholesky(exact.covs)
        self.mean = exact.mean.reshape(rows, 1, size)
        self.root = torch.linalg.cholesky(exact.cov)
        dense = prior.dense() if isinstance(prior, StationaryGaussianPrior) else prior
        # Of the modes, whose means are no part of it; those of `two_modes` are equal.
        within = dense.covs.mean(0)
        self.axes = axes(within, likelihood.operator, likelihood.image_shape, likelihood.sigma)
        both = exact.draw(2 * n, seed + (2 << 40)).reshape(rows, 2 * n, *likelihood.image_shape)
        self.control, self.reference = both[:, :n], both[:, n:]

    def blocks(self) -> Iterator[tuple[str, str, Tensor]]:
        """(key, words, functionals (k, n)) of what y measures and of what it leaves open, where there is any."""
        measured = self.axes.measured
        for key, words, chosen in (("measured", MEASURED, measured), ("open", OPEN, ~measured)):
            if bool(chosen.any()):
                yield key, words, self.axes.functionals[chosen]

    def modes(self, x: Tensor) -> Tensor:
        """The mode (B, n) that each draw is of."""
        return nearest_mode(x.flatten(2), self.means, self.roots, self.weights)

    def white(self, x: Tensor, functionals: Tensor) -> Tensor:
        """Functionals of draws, in units in which those of the draw's own mode are N(0, I): (B, n, k)."""
        c, mode = x.flatten(2) @ functionals.mT, self.modes(x)
        out = torch.empty_like(c)
        for k, cov in enumerate(self.covs):
            root = torch.linalg.cholesky(functionals @ cov @ functionals.mT)
            out = torch.where((mode == k)[..., None], closeness.whiten(c, self.means[:, None, k] @ functionals.mT, root), out)
        return out

    def distance(self, x: Tensor) -> Tensor:
        """Sliced Wasserstein distance (B,) to the reference draws, in units in which the covariance of the posterior is I."""
        along = closeness.directions(64, self.mean.shape[-1])
        white = [closeness.whiten(part.flatten(2), self.mean, self.root) for part in (x, self.reference)]
        return closeness.sliced_wasserstein(white[0], white[1], along)


def _against_exact(x: Tensor, exact: _Exact, rules: _Rules) -> Iterator[Finding]:
    """Means, covariances, distances and mode weights against the exact ones."""
    images, n = x.shape[:2]
    for key, words, functionals in exact.blocks():
        found, control = (closeness.moments(exact.white(part, functionals)) for part in (x, exact.control))
        errors = [closeness.root_of(average(part.shift)) for part in (found, control)]
        # Judged before the root is taken, which has no standard error at 0.
        shift = rules.near("", "", average(found.shift), None, 0.0, rules.tolerance**2)
        yield dataclasses.replace(
            rules.near(f"mean_{key}", f"error of the mean, {words}", errors[0], errors[1], 0.0, rules.tolerance),
            low=0.0, high=math.sqrt(float(shift.high or 0.0)), off=shift.off and shift.value > 0,
        )  # fmt: skip
        spreads = [closeness.root_of(average(part.variance)) for part in (found, control)]
        yield rules.near(f"spread_{key}", f"standard deviation, {words}", spreads[0], spreads[1], 1.0, rules.tolerance)
        degrees = images * (n - 1)
        values, held = (closeness.generalised_eigenvalues(part.scatter, degrees) for part in (found, control))
        low, high = closeness.eigenvalue_range(len(values), degrees, rules.share)
        low, high = low * max(1 - rules.tolerance, 0) ** 2, high * (1 + rules.tolerance) ** 2
        for end, place in (("lowest", 0), ("highest", -1)):
            value = float(values[place])
            yield Finding(
                f"{end}_{key}", f"{end} eigenvalue of the covariance, {words}", value, None, float(held[place]), low, high,
                off=not low <= value <= high,
            )  # fmt: skip
    if exact.weights.shape[1] > 1:
        yield _mode_weights(x, exact, rules)
    yield _distance(x, exact, rules)


def _distance(x: Tensor, exact: _Exact, rules: _Rules) -> Finding:
    """Sliced Wasserstein distance over the sampling floor. Squares of distances add up, and so say what is beyond the floor."""
    found, floor = exact.distance(x), exact.distance(exact.control)
    excess = average(found.square() - floor.square())
    squares, base = float(found.square().mean()), float(floor.square().mean())
    ratio = math.sqrt(squares / base)
    # Of draws whose means and standard deviations are both off by the tolerance; the floor grows with their variance.
    slack = max(2 * rules.tolerance**2 + rules.tolerance * base, rules.z * float(excess.stderr))
    error = float(excess.stderr) / (2 * base * ratio)
    off = float(excess.mean) > slack
    return Finding("distance", "sliced Wasserstein distance over its floor", ratio, error, 1.0, 0.0, math.sqrt(1 + slack / base), off=off)


def _mode_weights(x: Tensor, exact: _Exact, rules: _Rules) -> Finding:
    """Error of the weights of modes."""
    n, count = x.shape[1], exact.weights.shape[1]
    squares = []
    for part in (x, exact.control):
        shares = torch.nn.functional.one_hot(exact.modes(part), count).double().mean(1)
        squares.append(average(closeness.weight_errors(shares, exact.weights, n)))
    found, control = map(closeness.root_of, squares)
    judged = rules.near("", "", squares[0], None, 0.0, rules.tolerance**2)
    shown = rules.near("modes", "error of the weights of modes", found, control, 0.0, rules.tolerance)
    return dataclasses.replace(shown, low=0.0, high=math.sqrt(float(judged.high or 0.0)), off=judged.off and judged.value > 0)


def _against_truths(x: Tensor, truth: Tensor, posterior: Posterior, exact: _Exact | None, rules: _Rules, seed: int) -> Iterator[Finding]:
    """Coverage, spread against error, ranks and scores, which need no exact posterior."""
    control = None if exact is None else exact.control
    places, nominal = scores.intervals(LEVELS, x.shape[1])
    for words in ("pixels", "region means"):
        found, held = (None if v is None else _coverage(v, truth, places, words) for v in (x, control))
        for k, level in enumerate(nominal):
            assert found is not None
            z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
            allowed = level - math.erf(z * (1 - rules.tolerance) / math.sqrt(2))
            label = f"coverage of {level:.1%} intervals of {words}"
            yield rules.near(f"coverage_{words.split()[0]}_{k}", label, _of(found, k), held and _of(held, k), level, allowed)
    ratios = [None if v is None else _spread_ratio(v, truth) for v in (x, control)]
    assert ratios[0] is not None
    yield rules.near("spread_error", "spread over error", ratios[0], ratios[1], 1.0, rules.tolerance)
    yield from _rank_findings(x, truth, posterior, exact, rules)
    around = ranks.references(range(len(x)), x.shape[2:], seed)
    sets = [*rules.variants(x), *([] if control is None else [control])]
    tarp = [ranks.uniformity(ranks.tarp_shares(v, truth, around).sum(0)[None]) for v in sets]
    of_control = None if control is None else tarp.pop()
    yield rules.uniform("tarp", "ranks of distances from random points (TARP)", tarp, of_control)
    if control is not None:
        for key, label, score in (("crps", "CRPS", scores.crps), ("energy", "energy score", scores.energy_score)):
            own, best = (score(v, truth).flatten(1).mean(1) if key == "crps" else score(v, truth) for v in (x, control))
            paired = average(own / best.mean() - best / best.mean())
            yield Finding(key, f"{label}, over that of exact draws", 1 + float(paired.mean), float(paired.stderr), 1.0)


def _of(found: Average, k: int) -> Average:
    return Average(found.mean[k], found.stderr[k], found.images)


def _coverage(x: Tensor, truth: Tensor, places: Sequence[int], words: str) -> Average:
    if words == "region means":
        x, truth = scores.region_means(x, 2), scores.region_means(truth, 1)
    return average(scores.inside(x, truth, places).flatten(2).mean(2))


def _spread_ratio(x: Tensor, truth: Tensor) -> Average:
    a, b = (part.flatten(1).mean(1) for part in scores.spread_and_error(x, truth))
    totals, squares = torch.stack([a.sum(), b.sum(), (a * b).sum()]), torch.stack([a.square().sum(), b.square().sum()])
    return Average(*scores.spread_ratio(totals, squares, len(x)), len(x))


def _rank_findings(x: Tensor, truth: Tensor, posterior: Posterior, exact: _Exact | None, rules: _Rules) -> Iterator[Finding]:
    """Simulation-based calibration of some quantities."""
    sets = [*rules.variants(x), *([] if exact is None else [exact.control])]
    tested = []
    for draws in sets:
        names, own, true = _quantities(draws, truth, posterior, exact)
        tested.append(ranks.uniformity(ranks.rank_shares(own, true).sum(0)))
    control = None if exact is None else tested.pop()
    for q, name in enumerate(names):
        yield rules.uniform(f"ranks_{name.replace(' ', '_')}", f"ranks of {name}", tested, control, q)


def _quantities(x: Tensor, truth: Tensor, posterior: Posterior, exact: _Exact | None) -> tuple[list[str], Tensor, Tensor]:
    """Names of Q numbers that are ranked, and their values for draws, (B, n, Q), and truths, (B, Q).

    The likelihood is among them, for functions of x alone do not tell a sampler that ignores y from an exact one (Modrak et al.,
    "Simulation-based calibration checking for Bayesian computation", Bayesian Analysis 2023).
    """
    rows, n, size = x.shape[0], x.shape[1], truth[0].numel()
    z = torch.randn(size, dtype=torch.float64, generator=generator(0, "quantity")).to(x)
    weights: dict[str, Tensor] = {"the mean": torch.full_like(z, 1 / size), "a pixel": torch.zeros_like(z), "a random pattern": z}
    weights["a pixel"][size // 2] = 1
    if exact is not None:
        c = z @ exact.axes.vectors
        for words, chosen in ((MEASURED, exact.axes.measured), (OPEN, ~exact.axes.measured)):
            if bool(chosen.any()):
                weights[words] = (c * chosen) @ exact.axes.functionals
    both = torch.cat([truth[:, None], x], 1)
    values = both.flatten(2) @ torch.stack(list(weights.values())).mT
    norm = both.flatten(2).square().sum(2)
    each = posterior.select(torch.arange(rows).repeat_interleave(n + 1)).likelihood
    fit = each.log_prob(both.flatten(0, 1)).unflatten(0, (rows, n + 1))
    values = torch.cat([values, norm[..., None], fit[..., None]], 2)
    return [*weights, "the norm", "the likelihood"], values[:, 1:], values[:, 0]


def _reasons(findings: Sequence[Finding]) -> list[str]:
    """What is off, in words: first what is known of the exact posterior, then coverage, and ranks where nothing else says it."""
    off: Mapping[str, Finding] = {f.key: f for f in findings if f.off}
    texts = []
    for key, words in (("measured", MEASURED), ("open", OPEN)):
        texts += _spread_reasons(off, key, words)
        if f := off.get(f"mean_{key}"):
            texts.append(f"biased in {words}: its mean is off by {f.value:.2g} exact standard deviations")
    if f := off.get("modes"):
        texts.append(f"the weights of the modes are off by {f.value:.2g}")
    for words in ("pixels", "region"):
        missed = {abs(f.value - ((f.low or 0) + (f.high or 0)) / 2): f for key, f in off.items() if key.startswith(f"coverage_{words}")}
        if missed:
            f = missed[max(missed)]
            wide = f.value > ((f.low or 0) + (f.high or 0)) / 2
            texts.append(f"{_confidence(wide)} by coverage: {f.label.removeprefix('coverage of ')} hold {f.value:.1%} of the truths")
    if (f := off.get("spread_error")) and not texts:
        texts.append(f"{_confidence(f.value > 1)}: its spread is {f.value:.2g} of its error")
    if (f := off.get("distance")) and not texts:
        texts.append(f"its draws are {f.value:.3g} times as far from exact ones as those are from each other")
    return texts or [f"{f.label} are not uniform (p = {f.p:.1g})" for f in off.values()]


def _spread_reasons(off: Mapping[str, Finding], key: str, words: str) -> list[str]:
    if f := off.get(f"spread_{key}"):
        amount = f"{f.value:.2g} of the exact ones" if f.value < 1 else f"{f.value:.3g} times the exact ones"
        return [f"{_confidence(f.value > 1)} in {words}: its standard deviations are {amount}"]
    ends = [(_confidence(end == "highest"), off[f"{end}_{key}"]) for end in ("lowest", "highest") if f"{end}_{key}" in off]
    return [f"{text} in some directions of {words}: a standard deviation is {math.sqrt(f.value):.2g} of the exact one" for text, f in ends]


def _confidence(wide: bool) -> str:
    return "under-confident" if wide else "over-confident"
