"""What single images say of a posterior: scores, intervals, spread and error. Pure functions of draws and truth.

Draws are (B, n, *X), n for each of B images, and truths (B, *X). Nothing is averaged over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Average(NamedTuple):
    """A mean over images, its standard error (NaN for a single image), and the number of images."""

    mean: Tensor
    stderr: Tensor
    images: int


def average(values: Tensor) -> Average:
    """The mean of values (B, ...) over images, in float64."""
    values = values.double()
    return average_of_sums(values.sum(0), values.square().sum(0), len(values))


def average_of_sums(total: Tensor, squares: Tensor, images: int) -> Average:
    """As `average`, from the sums of values and of their squares."""
    mean = total / images
    variance = (squares - images * mean.square()).clamp_min(0) / (images - 1) if images > 1 else torch.full_like(mean, torch.nan)
    return Average(mean, (variance / images).sqrt(), images)


def check_draws(draws: Tensor, truth: Tensor, least: int = 1) -> int:
    """The number n of draws. Raises ValueError unless draws are (B, n, *X) and truths (B, *X), floating point, n >= least."""
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape:
        raise ValueError(f"draws of shape {tuple(draws.shape)} and truths of shape {tuple(truth.shape)}; (B, n, *X) and (B, *X) are needed")
    if not (draws.is_floating_point() and truth.is_floating_point()):
        raise ValueError(f"draws hold {draws.dtype} and truths {truth.dtype}; floating point is needed, not the values of a picture")
    if draws.shape[1] < least:
        raise ValueError(f"{draws.shape[1]} draws for each image; at least {least} are needed")
    return draws.shape[1]


def crps(draws: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of each entry, (B, *X), in the units of x; smaller is better.

    The fair form of Ferro (2014): mean |x_i - t| - sum_{i<j} |x_i - x_j| / (n (n - 1)), whose expectation does not depend on n.
    Needs n >= 2 (ValueError).
    """
    n = check_draws(draws, truth, least=2)
    weights = 2 * torch.arange(1, n + 1, dtype=draws.dtype, device=draws.device) - n - 1
    ordered = draws.sort(dim=1).values
    between = (ordered * weights.view(-1, *[1] * (truth.ndim - 1))).sum(1) / (n * (n - 1))
    return (draws - truth[:, None]).abs().mean(1) - between


def energy_score(draws: Tensor, truth: Tensor) -> Tensor:
    """Energy score of each image, (B,): mean ||x_i - t|| - sum_{i<j} ||x_i - x_j|| / (n (n - 1)); smaller is better.

    The fair form, as for `crps`, which it is for a single entry (Gneiting and Raftery 2007, section 4.3). Needs n >= 2.
    """
    n = check_draws(draws, truth, least=2)
    x, t = draws.flatten(2), truth.flatten(1)[:, None]
    # Distances by differences: those of large images by scalar products lose half of the digits.
    between = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / (2 * n * (n - 1))
    return torch.linalg.vector_norm(x - t, dim=2).mean(1) - between


def spread_and_error(draws: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(spread, error) of each entry, (B, *X) both: (1 + 1/n) times the variance of the draws, and the squared error of their mean.

    Their expectations agree where truth and draws come from the same distribution (Fortin et al. 2014). Needs n >= 2.
    """
    n = check_draws(draws, truth, least=2)
    return (1 + 1 / n) * draws.var(1), (draws.mean(1) - truth).square()


def spread_ratio(totals: Tensor, squares: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The root of mean spread over mean error, and its standard error over images to first order.

    From sums over images of a, b and a b (3,), and of a^2 and b^2 (2,), where a is the mean spread of an image and b its mean error.
    1 if the draws are right, less if they are too sure of themselves.
    """
    (a, b, ab), (aa, bb) = totals / images, squares / images
    # The variance of a_i / a - b_i / b, whose mean is 0.
    variance = aa / a.square() + bb / b.square() - 2 * ab / (a * b)
    ratio = (a / b).sqrt()
    return ratio, ratio / 2 * (variance.clamp_min(0) / max(images - 1, 1)).sqrt()


def intervals(levels: Sequence[float], n: int) -> tuple[list[int], list[float]]:
    """For each level the k of the interval between the k-th smallest and k-th largest of n draws, and what it holds exactly.

    If truth and draws are exchangeable it holds the truth with probability (n + 1 - 2 k)/(n + 1), whatever their distribution;
    k is the one whose probability is nearest to the level (4 draws have intervals of 0.6 and 0.2 only). Equal intervals are
    given once. Raises ValueError for a level outside (0, 1) or n < 2.
    """
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"levels={list(levels)}; numbers in (0, 1) are needed")
    if n < 2:
        raise ValueError(f"n={n}; an interval needs at least 2 draws")
    places = list(dict.fromkeys(min(max(round((1 - level) * (n + 1) / 2), 1), n // 2) for level in levels))
    return places, [(n + 1 - 2 * k) / (n + 1) for k in places]


def inside(draws: Tensor, truth: Tensor, places: Sequence[int]) -> Tensor:
    """Whether the truth lies in the interval of each k of `intervals`, bounds included: (B, K, *X) of 0 and 1, in float64."""
    check_draws(draws, truth, least=2)
    ordered, t = draws.sort(dim=1).values, truth[:, None]
    low, high = ordered[:, [k - 1 for k in places]], ordered[:, [-k for k in places]]
    return ((low <= t) & (t <= high)).double()


def region_means(x: Tensor, lead: int = 1, cells: int = 4) -> Tensor:
    """Means over the cells of a grid of at most cells x cells, by channel: (*L, C, H, W) with `lead` axes L -> (*L, C * cells^2).

    Of signals with fewer than two axes, the mean of all: (*L, 1).
    """
    shape = x.shape[lead:]
    if len(shape) < 2:
        return x.reshape(*x.shape[:lead], -1).mean(-1, keepdim=True)
    flat = x.reshape(-1, 1, *shape[-2:])
    means = functional.adaptive_avg_pool2d(flat, (min(cells, shape[-2]), min(cells, shape[-1])))
    return means.reshape(*x.shape[:lead], -1)
