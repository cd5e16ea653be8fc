"""How near draws are to a posterior that is known: sliced Wasserstein distance, whitened moments, mode weights.

Pure functions, image by image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from invsolve.metrics.scores import Average
from operators import generator


def directions(count: int, size: int, seed: int = 0) -> Tensor:
    """`count` random unit vectors (count, size) in float64, the same for a seed."""
    z = torch.randn(count, size, dtype=torch.float64, generator=generator(seed, "directions"))
    return z / torch.linalg.vector_norm(z, dim=1, keepdim=True)


def sliced_wasserstein(draws: Tensor, reference: Tensor, along: Tensor) -> Tensor:
    """Sliced 2-Wasserstein distance (B,) between two sets of n draws (B, n, *X) of each image, over unit vectors (P, d).

    The root of the mean, over directions, of the squared Wasserstein distance of the projections. Two sets of the same
    distribution have a distance as well, the sampling floor, which shrinks with n: hold the result against it.
    Raises ValueError if the sets differ in shape.
    """
    if draws.shape != reference.shape:
        raise ValueError(f"sets of shapes {tuple(draws.shape)} and {tuple(reference.shape)}; as many draws of each are needed")
    a, b = ((x.flatten(2) @ along.mT.to(x)).sort(dim=1).values for x in (draws, reference))
    return (a - b).square().mean((1, 2)).sqrt()


def whiten(x: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """root^-1 (x - mean) of vectors x (B, n, k), for means that broadcast to them and Cholesky factors (k, k) or (B, k, k)."""
    return torch.linalg.solve_triangular(root, (x - mean).mT, upper=False).mT


class Moments(NamedTuple):
    """Of draws in units in which the exact posterior is N(0, I), by image: see `moments`."""

    shift: Tensor
    variance: Tensor
    scatter: Tensor


def moments(white: Tensor) -> Moments:
    """Moments of whitened draws (B, n, k), n >= 2.

    shift (B,): the mean over the k directions of the squared error of the mean, free of sampling error (its expectation is 0
    for exact draws, and single values may be negative); variance (B,): the mean variance over the directions, 1 for exact
    draws; scatter (k, k): the sum over images and draws of outer products of what differs from the image's mean.
    """
    n, k = white.shape[1:]
    if n < 2:
        raise ValueError(f"{n} draws for each image; at least 2 are needed")
    mean = white.mean(1)
    centred = white - mean[:, None]
    variance = centred.square().sum((1, 2)) / ((n - 1) * k)
    return Moments(mean.square().mean(1) - variance / n, variance, torch.einsum("bni,bnj->ij", centred, centred))


def generalised_eigenvalues(scatter: Tensor, degrees: int) -> Tensor:
    """Variances of draws over those of the exact posterior, in the directions in which they are extreme, (k,), rising.

    From the scatter of `moments`, summed, and its degrees of freedom (images times draws less one).
    """
    return torch.linalg.eigvalsh(scatter / degrees)


def eigenvalue_range(k: int, degrees: int, p: float) -> tuple[float, float]:
    """What the eigenvalues of exact Gaussian draws leave with a probability of at most p on each side.

    Davidson and Szarek (2001), theorem II.13: singular values of a Gaussian matrix over the root of its rows are within
    1 -+ sqrt(k/degrees) and t more with probability exp(-degrees t^2 / 2).
    """
    margin = math.sqrt(k / degrees) + math.sqrt(2 * math.log(1 / p) / degrees)
    return max(1 - margin, 0.0) ** 2, (1 + margin) ** 2


def weight_errors(shares: Tensor, weights: Tensor, n: int) -> Tensor:
    """Squared error of the shares (B, K) of n draws in each mode, free of sampling error, the mean over modes: (B,)."""
    if n < 2:
        raise ValueError(f"{n} draws for each image; at least 2 are needed")
    return ((shares - weights).square() - shares * (1 - shares) / (n - 1)).mean(1)


def root_of(average: Average) -> Average:
    """Square root of an averaged square, 0 if it is negative; the standard error follows to first order (of 0, its own root)."""
    root = average.mean.clamp_min(0).sqrt()
    slope = torch.where(root > 0, average.stderr / (2 * root.clamp_min(1e-300)), torch.inf)
    return Average(root, torch.minimum(slope, average.stderr.sqrt()), average.images)
