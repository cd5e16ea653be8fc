"""Super-resolution: the measurement is a smaller image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from operators.base import shape_of
from operators.picture import as_picture
from operators.spectral import SeparableOperator


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981, Eq. 15)."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def bicubic_matrix(size: int, factor: int) -> Tensor:
    """Matrix (size / factor, size) of antialiased bicubic reduction along one axis, float64, rows summing to 1.

    The cubic kernel is stretched by `factor` (support 4 factor) and centred on output pixel i at (i + 1/2) factor - 1/2;
    pixels beyond the border are mirrored with the border pixel repeated. As MATLAB's imresize and Shocher's Resizer, which
    DPS uses.
    """
    centre = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    at = centre.floor().long()[:, None] + torch.arange(-2 * factor, 2 * factor + 2)
    weights = _cubic((at - centre[:, None]) / factor)
    weights = weights / weights.sum(1, keepdim=True)
    at = at % (2 * size)
    at = torch.minimum(at, 2 * size - 1 - at)
    return torch.zeros(len(centre), size, dtype=torch.float64).scatter_add_(1, at, weights)


def average_matrix(size: int, factor: int) -> Tensor:
    """Matrix (size / factor, size) of the mean of blocks of `factor` samples, float64; its rows are orthogonal."""
    return torch.eye(size // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor


class SuperResolution(SeparableOperator):
    """Reduction by an integer `factor` in both directions, (B, C, H, W) -> (B, C, H/factor, W/factor).

    kind="bicubic": antialiased bicubic with mirrored boundary, the x4 task of DPS (Chung et al., arXiv:2209.14687, App. D);
    kind="average": mean of factor x factor blocks, the "sr4" of DDRM and DDNM (Kawar et al., arXiv:2201.11793).
    Prox and pseudo-inverse are in closed form for both.

    Raises ValueError for an unknown kind, a factor < 1, or sides that factor does not divide.
    """

    def __init__(self, image_shape: Sequence[int], factor: int = 4, kind: str = "bicubic") -> None:
        _, height, width = shape_of(image_shape, 3)
        matrices = {"bicubic": bicubic_matrix, "average": average_matrix}
        if kind not in matrices:
            raise ValueError(f"kind must be one of {sorted(matrices)}, got {kind!r}")
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ValueError(f"factor must be an integer >= 1, got {factor!r}")
        if height % factor or width % factor:
            raise ValueError(f"factor {factor} must divide both sides of the image, got {height}x{width}")
        super().__init__(image_shape, matrices[kind](height, factor), matrices[kind](width, factor))
        self.factor, self.kind = factor, kind

    def view(self, y: Tensor) -> Tensor:
        """The small image, each pixel enlarged to a factor x factor block, clamped to [-1, 1]: (B, C, H, W)."""
        return as_picture(y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1))
