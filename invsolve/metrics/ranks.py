"""Ranks of the truth among the draws, whether they are uniform, and the coverage of random regions (TARP).

If truth and draws come from the same distribution the truth is as likely to be the smallest of all as any other. Talts et
al., "Validating Bayesian inference algorithms with simulation-based calibration", arXiv 1804.06788.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import betainc
from torch import Tensor

from invsolve.metrics.scores import check_draws
from operators import generator


class Uniformity(NamedTuple):
    """chi^2 and its p-value, and the largest distance of the distribution of the ranks from the uniform one; (Q,) each."""

    chi2: Tensor
    p: Tensor
    deviation: Tensor


def rank_shares(draws: Tensor, truth: Tensor) -> Tensor:
    """Where each truth stands among its draws: (B, n, *Q), (B, *Q) -> (B, *Q, n + 1), one at its rank.

    Of a truth that equals some draws (clipped pixels) the one is divided evenly among the ranks that it could have.
    """
    n = check_draws(draws, truth)
    low, high = (draws < truth[:, None]).sum(1)[..., None], (draws <= truth[:, None]).sum(1)[..., None]
    places = torch.arange(n + 1, device=draws.device)
    return ((places >= low) & (places <= high)).double() / (high - low + 1)


def chosen_bins(ranks: int, images: int) -> int:
    """As many bins, up to 16, as ranks allow and leave at least 8 images for each on average; at least 2."""
    return max(2, min(ranks, images // 8, 16))


def binned(counts: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Counts (..., n + 1) of ranks gathered in bins: (..., bins), and what share of the ranks each bin holds, (bins,).

    Raises ValueError unless 2 <= bins <= n + 1.
    """
    ranks = counts.shape[-1]
    if not 2 <= bins <= ranks:
        raise ValueError(f"bins={bins}; 2 to {ranks} are needed for {ranks} ranks")
    parts = counts.tensor_split(bins, dim=-1)
    sizes = torch.tensor([part.shape[-1] for part in parts], dtype=counts.dtype, device=counts.device)
    return torch.stack([part.sum(-1) for part in parts], -1), sizes / ranks


def chi2_p(chi2: Tensor, degrees: int) -> Tensor:
    """The probability of a larger chi^2 with so many degrees of freedom."""
    return torch.special.gammaincc(torch.full_like(chi2, degrees / 2), chi2 / 2)


def _deviation(shares: Tensor) -> Tensor:
    even = torch.arange(1, shares.shape[-1] + 1, dtype=shares.dtype, device=shares.device) / shares.shape[-1]
    return (shares.cumsum(-1) - even).abs().amax(-1)


def uniformity(counts: Tensor, bins: int | None = None) -> Uniformity:
    """Pearson's test of counts (Q, n + 1) of ranks, each of another image: needs independent ranks, so one for each image."""
    images = counts.sum(-1, keepdim=True)
    held, share = binned(counts, bins or chosen_bins(counts.shape[-1], int(images.min())))
    chi2 = ((held - images * share).square() / (images * share)).sum(-1)
    return Uniformity(chi2, chi2_p(chi2, held.shape[-1] - 1), _deviation(counts / images))


def clustered_uniformity(mean: Tensor, cov: Tensor, images: int) -> Uniformity:
    """The test where an image has many ranks, which go together: Hotelling's, on the shares of each image.

    Args:
        mean: (bins,) of the differences between the shares of an image's ranks in each bin and what uniformity gives.
        cov: (bins, bins) of the same over images.
        images: their number, with more images than bins.

    chi2 is T^2, which Hotelling's F law turns into p (NaN where there are too few images).
    """
    bins = len(mean)
    degrees = images - bins + 1
    if degrees < 1:
        nothing = torch.full((1,), torch.nan, dtype=mean.dtype)
        return Uniformity(nothing, nothing, mean.cumsum(-1).abs().amax()[None])
    # The shares sum to one, so that the last is left out.
    t2 = images * mean[:-1] @ torch.linalg.pinv(cov[:-1, :-1], hermitian=True) @ mean[:-1]
    # T^2 (images - bins + 1) / ((images - 1) (bins - 1)) has the F law of (bins - 1, images - bins + 1), here as a beta law.
    ratio = float(t2) / (images - 1)
    p = betainc(degrees / 2, (bins - 1) / 2, 1 / (1 + ratio))
    return Uniformity(t2[None], torch.full_like(t2, p)[None], mean.cumsum(-1).abs().amax()[None])


def references(ids: Sequence[int | str], shape: Sequence[int], seed: int = 0) -> Tensor:
    """The points (B, *X) that the regions of `tarp_shares` lie around: uniform in [-1, 1], from the seed and each image's id."""
    return torch.stack([2 * torch.rand(tuple(shape), dtype=torch.float64, generator=generator(seed, id, "tarp")) - 1 for id in ids])


def tarp_shares(draws: Tensor, truth: Tensor, around: Tensor) -> Tensor:
    """The rank (B, n + 1) of the truth's distance from a point (B, *X) among those of the draws, as in `rank_shares`.

    Lemos, Coogan, Hezaveh, Perreault-Levasseur, "Sampling-based accuracy testing of posterior estimators for general inference",
    ICML 2023: the ball around the point that reaches as far as the truth holds a share of the draws that is uniform if the
    draws are right, wherever the points are. Points that do not depend on y do not tell a sampler that ignores y.
    """
    check_draws(draws, truth)
    near = torch.linalg.vector_norm((draws - around[:, None].to(draws)).flatten(2), dim=2)
    return rank_shares(near, torch.linalg.vector_norm((truth - around.to(truth)).flatten(1), dim=1))


def expected_coverage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(credibility, expected coverage) of counts (n + 1) from `tarp_shares`: the curve of the paper, the diagonal if all is right."""
    levels = torch.arange(1, len(counts) + 1, dtype=counts.dtype, device=counts.device) / len(counts)
    return levels, counts.cumsum(0) / counts.sum()
