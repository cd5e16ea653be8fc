"""Gaussian blur with circular or reflecting boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from operators.base import shape_of
from operators.spectral import SeparableOperator


def gaussian_taps(std: float, taps: int | None = None) -> Tensor:
    """Weights (2r + 1,) of a Gaussian of standard deviation `std` pixels, float64, summing to 1, r = int(4 std + 1/2).

    This is scipy.ndimage.gaussian_filter's response to an impulse (truncate=4). `taps` limits the radius to
    (taps - 1) / 2; more taps than the natural radius add only zeros, which are left out.
    Raises ValueError unless std is finite and > 0 and taps odd and > 0.
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std must be a finite number of pixels > 0, got {std!r}")
    radius = int(4 * std + 0.5)
    if taps is not None:
        if taps < 1 or taps % 2 == 0:
            raise ValueError(f"taps must be odd and positive (a centred kernel), got {taps!r}")
        radius = min(radius, taps // 2)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offset / std) ** 2)
    return weights / weights.sum()


def convolution_matrix(weights: Tensor, size: int, boundary: str) -> Tensor:
    """Matrix (size, size) of the 1-D filter out[i] = sum_d weights[d + r] x[index(i + d)], float64.

    `index` wraps around ("circular", kernels longer than the signal wrap as often as needed) or mirrors about the end samples
    without repeating them ("reflect", as torch.nn.ReflectionPad2d).
    Raises ValueError if r >= size for "reflect", or for an unknown boundary.
    """
    radius = len(weights) // 2
    at = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    if boundary == "circular":
        at = at % size
    elif boundary == "reflect":
        if radius >= size:
            raise ValueError(f"reflecting a kernel of radius {radius} needs sides larger than {radius}, got {size}")
        at = at.abs()
        at = (size - 1) - (size - 1 - at).abs()
    else:
        raise ValueError(f"boundary must be 'circular' or 'reflect', got {boundary!r}")
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, at, weights.expand(size, -1).contiguous())


class GaussianBlur(SeparableOperator):
    """Convolution of every channel with a Gaussian of `std` pixels truncated at 4 std, (B, C, H, W) -> (B, C, H, W).

    The defaults are the blur of DPS (Chung et al., arXiv:2209.14687, App. D; its 61 x 61 kernel of std 3 is zero beyond
    radius 12), with boundary="reflect" for DPS's reflection padding. As the kernel is separable, the boundary included, A is
    a pair of 1-D matrices: the adjoint is exact and prox and pseudo-inverse are in closed form for both boundaries.

    Raises ValueError for a std or taps out of range, an unknown boundary, or a reflected kernel as large as a side.
    """

    def __init__(self, image_shape: Sequence[int], std: float = 3.0, taps: int | None = None, boundary: str = "circular") -> None:
        _, height, width = shape_of(image_shape, 3)
        weights = gaussian_taps(std, taps)
        super().__init__(image_shape, convolution_matrix(weights, height, boundary), convolution_matrix(weights, width, boundary))
        self.std, self.taps, self.boundary = std, taps, boundary
