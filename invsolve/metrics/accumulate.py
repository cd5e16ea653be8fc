"""The measures as torchmetrics classes: updated with the draws and truths of some images, merged over processes.

States are sums over images in float64 and counts, so that processes, batches and orders give the same results to rounding.
`compute` gives a dict of tensors; "stderr" is the standard error over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from invsolve.metrics import closeness, ranks, scores

_AT_ONCE = 1 << 24


class _Sums(Metric):
    """Sums over images of `size` numbers for each, and of their squares."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    squares: Tensor
    images: Tensor

    def __init__(self, size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        """Adds the numbers (B,) or (B, size) of B images."""
        values = values.double().reshape(len(values), -1)
        self.total = self.total + values.sum(0)
        self.squares = self.squares + values.square().sum(0)
        self.images = self.images + len(values)

    def _average(self) -> scores.Average:
        if not int(self.images):
            raise ValueError(f"{type(self).__name__} has seen no image")
        return scores.average_of_sums(self.total, self.squares, int(self.images))

    def compute(self) -> dict[str, Tensor]:
        """mean and stderr, (size,) or scalars; images."""
        mean, stderr, _ = self._average()
        return {"mean": mean.squeeze(), "stderr": stderr.squeeze(), "images": self.images}


class CRPS(_Sums):
    """`scores.crps`, the mean over the entries of an image; in the units of x."""

    higher_is_better = False

    def update(self, draws: Tensor, truth: Tensor) -> None:
        """Draws (B, n, *X), truths (B, *X)."""
        self._add(scores.crps(draws, truth).flatten(1).mean(1))


class EnergyScore(_Sums):
    """`scores.energy_score` of each image; a norm, so it grows with the root of the number of entries."""

    higher_is_better = False

    def update(self, draws: Tensor, truth: Tensor) -> None:
        """Draws (B, n, *X), truths (B, *X)."""
        self._add(scores.energy_score(draws, truth))


class Coverage(_Sums):
    """The share of an image's entries (or, with `cells`, of its `scores.region_means`) inside central intervals of the draws.

    Args:
        draws: n, how many there are for each image.
        levels: wanted probabilities; `scores.intervals` says which ones n draws can have, and `compute` gives them as "nominal".
        cells: None for pixels, or the side of the grid of regions.
    """

    def __init__(self, draws: int, levels: Sequence[float] = (0.5, 0.9), cells: int | None = None, **kwargs: Any) -> None:
        self.places, self.nominal = scores.intervals(levels, draws)
        super().__init__(len(self.places), **kwargs)
        self.draws, self.cells = draws, cells

    def update(self, draws: Tensor, truth: Tensor) -> None:
        """Draws (B, n, *X), truths (B, *X). Raises ValueError for another n."""
        _expect(self.draws, draws)
        if self.cells is not None:
            draws, truth = scores.region_means(draws, 2, self.cells), scores.region_means(truth, 1, self.cells)
        self._add(scores.inside(draws, truth, self.places).flatten(2).mean(2))

    def compute(self) -> dict[str, Tensor]:
        """nominal, mean and stderr, (levels,) each; images."""
        mean, stderr, _ = self._average()
        return {"nominal": torch.tensor(self.nominal, dtype=torch.float64), "mean": mean, "stderr": stderr, "images": self.images}


class SpreadError(_Sums):
    """The spread of the draws against the error of their mean: ratio, and both by how large the spread is.

    `ratio` is the root of mean spread over mean error (`scores.spread_and_error`): 1 if the draws are right, less if they are too
    sure of themselves. The curve has a point for each bin of the spread (a standard deviation), on a fixed logarithmic scale.
    """

    curve: Tensor

    def __init__(self, bins: int = 24, low: float = 1e-3, high: float = 4.0, **kwargs: Any) -> None:
        # Per image: spread, error and spread x error, from which the error of the ratio follows.
        super().__init__(3, **kwargs)
        self.edges = torch.logspace(torch.tensor(low).log10(), torch.tensor(high).log10(), bins + 1, dtype=torch.float64)[1:-1]
        self.add_state("curve", torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, draws: Tensor, truth: Tensor) -> None:
        """Draws (B, n, *X), truths (B, *X)."""
        spread, error = (part.flatten(1).double() for part in scores.spread_and_error(draws, truth))
        a, b = spread.mean(1), error.mean(1)
        self._add(torch.stack([a, b, a * b], 1))
        place = torch.bucketize(spread.sqrt().flatten(), self.edges.to(spread))
        rows = torch.stack([torch.ones_like(spread), spread, error]).flatten(1)
        self.curve = self.curve.index_add(1, place, rows)

    def compute(self) -> dict[str, Tensor]:
        """ratio and its stderr; spread and error (roots of means) overall; curve_count, curve_spread, curve_error by bin; images."""
        self._average()
        ratio, stderr = scores.spread_ratio(self.total, self.squares[:2], int(self.images))
        count = self.curve[0]
        spread, error = (self.curve[1:] / count.clamp_min(1)).sqrt()
        both = (self.total[:2] / self.images).sqrt()
        curve = {"curve_count": count, "curve_spread": spread, "curve_error": error}
        return {"ratio": ratio, "stderr": stderr, "spread": both[0], "error": both[1], **curve, "images": self.images}


class RankHistogram(Metric):
    """Ranks of all pixels (with `cells`, of region means) of an image among its draws, and whether they are uniform.

    The ranks of an image go together, so the test is Hotelling's over images; it needs several images for each bin.
    """

    full_state_update = False
    counts: Tensor
    outer: Tensor
    images: Tensor

    def __init__(self, draws: int, bins: int | None = None, cells: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.draws, self.cells = draws, cells
        self.bins = min(draws + 1, 8) if bins is None else bins
        ranks.binned(torch.zeros(draws + 1), self.bins)
        self.add_state("counts", torch.zeros(draws + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(self.bins, self.bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, draws: Tensor, truth: Tensor) -> None:
        """Draws (B, n, *X), truths (B, *X). Raises ValueError for another n."""
        _expect(self.draws, draws)
        if self.cells is not None:
            draws, truth = scores.region_means(draws, 2, self.cells), scores.region_means(truth, 1, self.cells)
        # A few images at a time, for each entry takes n + 1 numbers.
        rows = max(1, _AT_ONCE // ((self.draws + 1) * truth[0].numel()))
        parts = zip(draws.split(rows), truth.split(rows), strict=True)
        shares = torch.cat([ranks.rank_shares(d, t).reshape(len(t), -1, self.draws + 1).mean(1) for d, t in parts])
        held, share = ranks.binned(shares, self.bins)
        self.counts = self.counts + shares.sum(0)
        self.outer = self.outer + (held - share).mT @ (held - share)
        self.images = self.images + len(shares)

    def compute(self) -> dict[str, Tensor]:
        """shares (n + 1,) of the ranks; chi2 (Hotelling's T^2), p, deviation (of the cumulative shares); images."""
        images = int(self.images)
        if not images:
            raise ValueError("RankHistogram has seen no image")
        shares = self.counts / images
        held, share = ranks.binned(shares, self.bins)
        mean = held - share
        cov = (self.outer - images * torch.outer(mean, mean)) / max(images - 1, 1)
        chi2, p, deviation = ranks.clustered_uniformity(mean, cov, images)
        return {"shares": shares, "chi2": chi2[0], "p": p[0], "deviation": deviation[0], "images": self.images}


class _Ranks(Metric):
    """Ranks of `quantities` numbers, one of each for each image."""

    full_state_update = False
    counts: Tensor

    def __init__(self, draws: int, quantities: int, bins: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.draws, self.bins = draws, bins
        self.add_state("counts", torch.zeros(quantities, draws + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def _found(self) -> dict[str, Tensor]:
        if not float(self.counts.sum()):
            raise ValueError(f"{type(self).__name__} has seen no image")
        return {"counts": self.counts, **ranks.uniformity(self.counts, self.bins)._asdict()}


class SBC(_Ranks):
    """Simulation-based calibration: one rank for each image and each of `quantities` numbers that are computed of it.

    Args:
        draws: n, how many there are for each image.
        quantities: how many numbers.
        bins: of the test; by default as many, up to 16, as the images allow.
    """

    def __init__(self, draws: int, quantities: int = 1, bins: int | None = None, **kwargs: Any) -> None:
        super().__init__(draws, quantities, bins, **kwargs)

    def update(self, draws: Tensor, truth: Tensor) -> None:
        """The quantities of the draws, (B, n, Q), and of the truths, (B, Q). Raises ValueError for another n."""
        _expect(self.draws, draws)
        self.counts = self.counts + ranks.rank_shares(draws, truth).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """counts (Q, n + 1); chi2, p and deviation, (Q,)."""
        return self._found()


class TARP(_Ranks):
    """Coverage of random regions: `ranks.tarp_shares`. Arguments as for `SBC`."""

    def __init__(self, draws: int, bins: int | None = None, **kwargs: Any) -> None:
        super().__init__(draws, 1, bins, **kwargs)

    def update(self, draws: Tensor, truth: Tensor, around: Tensor) -> None:
        """Draws (B, n, *X), truths (B, *X), and the points (B, *X) that regions lie around, such as `ranks.references`."""
        _expect(self.draws, draws)
        self.counts = self.counts + ranks.tarp_shares(draws, truth, around).sum(0)[None]

    def compute(self) -> dict[str, Tensor]:
        """credibility and coverage (n + 1,), the curve; counts (n + 1,); chi2, p, deviation."""
        found = {key: value[0] for key, value in self._found().items()}
        credibility, coverage = ranks.expected_coverage(found["counts"])
        return {"credibility": credibility, "coverage": coverage, **found}


class SlicedWasserstein(_Sums):
    """Sliced 2-Wasserstein distance to exact draws, and over the sampling floor: that between exact draws themselves.

    Args:
        size: d, the number of entries of a signal.
        projections: how many directions.
        seed: of the directions.
    """

    higher_is_better = False

    def __init__(self, size: int, projections: int = 64, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)
        self.register_buffer("along", closeness.directions(projections, size, seed), persistent=False)

    def update(self, draws: Tensor, reference: Tensor) -> None:
        """Draws (B, n, *X) and exact ones (B, 2 n, *X): the first n for the distance, all for the floor."""
        n = draws.shape[1]
        if reference.shape[1] != 2 * n:
            raise ValueError(f"{reference.shape[1]} exact draws; {2 * n}, twice those of the sampler, are needed")
        first, second = reference[:, :n], reference[:, n:]
        pairs = ((draws, first), (second, first))
        self._add(torch.stack([closeness.sliced_wasserstein(a, b, self.along) for a, b in pairs], 1))

    def compute(self) -> dict[str, Tensor]:
        """distance and floor, means over images with stderr (2,); ratio, 1 if nothing tells them apart; images."""
        mean, stderr, _ = self._average()
        return {"distance": mean[0], "floor": mean[1], "stderr": stderr, "ratio": mean[0] / mean[1], "images": self.images}


class WhitenedMoments(_Sums):
    """Error of the mean and generalised eigenvalues of the covariance, from draws in units in which the posterior is N(0, I).

    Args:
        size: k, the number of directions (those that y measures, say, or those that it leaves open).
    """

    scatter: Tensor
    degrees: Tensor

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)
        self.add_state("scatter", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("degrees", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, white: Tensor) -> None:
        """Draws (B, n, k) from `closeness.whiten`."""
        found = closeness.moments(white.double())
        self._add(torch.stack([found.shift, found.variance], 1))
        self.scatter = self.scatter + found.scatter
        self.degrees = self.degrees + white.shape[0] * (white.shape[1] - 1)

    def compute(self) -> dict[str, Tensor]:
        """mean_error (root mean square over images and directions, free of sampling error), variance, eigenvalues (k,), images."""
        mean, stderr, images = self._average()
        error = closeness.root_of(scores.Average(mean[0], stderr[0], images))
        eigenvalues = closeness.generalised_eigenvalues(self.scatter, int(self.degrees))
        return {"mean_error": error.mean, "variance": mean[1], "eigenvalues": eigenvalues, "stderr": stderr, "images": self.images}


class ModeWeights(_Sums):
    """Root mean square error of the weights of modes, free of sampling error."""

    higher_is_better = False

    def update(self, shares: Tensor, weights: Tensor, n: int) -> None:
        """Shares (B, K) of n draws in each mode, and the exact weights (B, K)."""
        self._add(closeness.weight_errors(shares, weights, n))

    def compute(self) -> dict[str, Tensor]:
        """error and stderr, scalars; images."""
        error, stderr, _ = closeness.root_of(self._average())
        return {"error": error.squeeze(), "stderr": stderr.squeeze(), "images": self.images}


def _expect(n: int, draws: Tensor) -> None:
    if draws.shape[1] != n:
        raise ValueError(f"{draws.shape[1]} draws for each image, but the metric was made for {n}")
