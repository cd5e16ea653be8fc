"""Super-resolution: the measurement is a smaller image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from operators.blur.convolution import CircularConvolution, reduced
from operators.blur.kernels import bicubic_kernel, cubic, make_kernel
from operators.core.picture import as_picture
from operators.core.spectral import SeparableOperator
from operators.core.tensors import shape_of


def bicubic_matrix(size: int, factor: int) -> Tensor:
    """Matrix (size / factor, size) of antialiased bicubic reduction along one axis, float64, rows summing to 1.

    The cubic kernel is stretched by `factor` (support 4 factor) and centred on output pixel i at (i + 1/2) factor - 1/2;
    pixels beyond the border are mirrored with the border pixel repeated. As MATLAB's imresize and Shocher's Resizer, which
    DPS uses.
    """
    centre = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    at = centre.floor().long()[:, None] + torch.arange(-2 * factor, 2 * factor + 2)
    weights = cubic((at - centre[:, None]) / factor)
    weights = weights / weights.sum(1, keepdim=True)
    at = at % (2 * size)
    at = torch.minimum(at, 2 * size - 1 - at)
    return torch.zeros(len(centre), size, dtype=torch.float64).scatter_add_(1, at, weights)


def average_matrix(size: int, factor: int) -> Tensor:
    """Matrix (size / factor, size) of the mean of blocks of `factor` samples, float64; its rows are orthogonal."""
    return torch.eye(size // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor


def decimate_matrix(size: int, factor: int) -> Tensor:
    """Matrix (size / factor, size) that keeps the samples 0, factor, 2 factor, ..., float64."""
    return torch.eye(size, dtype=torch.float64)[::factor].contiguous()


def enlarged(y: Tensor, factor: int) -> Tensor:
    """Picture (B, C, H, W) of a small image, each pixel a block of factor x factor, clamped to [-1, 1]."""
    return as_picture(y.repeat_interleave(factor, -2).repeat_interleave(factor, -1))


class SuperResolution(SeparableOperator):
    """Reduction by an integer `factor` in both directions, (B, C, H, W) -> (B, C, H/factor, W/factor).

    kind="bicubic": antialiased bicubic with mirrored boundary, the x4 task of DPS (Chung et al., arXiv:2209.14687, App. D);
    kind="average": mean of factor x factor blocks, the "sr4" of DDRM and DDNM (Kawar et al., arXiv:2201.11793);
    kind="decimate": the first pixel of each block, without any filter.
    Prox and pseudo-inverse are in closed form for all. `KernelDownsampling` takes any kernel.

    Raises ValueError for an unknown kind, a factor < 1, or sides that factor does not divide.
    """

    def __init__(self, image_shape: Sequence[int], factor: int = 4, kind: str = "bicubic") -> None:
        _, height, width = shape_of(image_shape, 3)
        matrices = {"bicubic": bicubic_matrix, "average": average_matrix, "decimate": decimate_matrix}
        if kind not in matrices:
            raise ValueError(f"kind must be one of {sorted(matrices)}, got {kind!r}")
        reduced((height, width), factor)
        super().__init__(image_shape, matrices[kind](height, factor), matrices[kind](width, factor))
        self.factor, self.kind = factor, kind

    def view(self, y: Tensor) -> Tensor:
        """The small image, each pixel enlarged to a factor x factor block, clamped to [-1, 1]: (B, C, H, W)."""
        return enlarged(y, self.factor)


class KernelDownsampling(CircularConvolution):
    """Circular true convolution with any kernel, then decimation: y = (k * x)[offset::factor, offset::factor].

    (B, C, H, W) -> (B, C, H/factor, W/factor), the degradation of classical super-resolution. `kernel`: "bicubic" (Keys'
    kernel stretched by factor), or a kernel of `Blur` with its options `taps`, `intensity`, `std`, `angle`, `radius`,
    `normalise` and `seed`. The first sample stands for pixel `offset` of the blurred image, 0 as in Zhao et al.;
    offset=(factor - 1) // 2 centres kernels of even side on the block of pixels, as `SuperResolution` does ("uniform" with
    taps=factor is then its block average).

    Prox and pseudo-inverse in closed form by FFT: Zhao et al., Fast Single Image Super-resolution using a New Analytical
    Solution for l2-l2 Problems, arXiv:1510.00143, Eq. 15. factor=1 is the circular blur as a singular value decomposition.

    Raises ValueError for what `Blur` refuses, a factor that does not divide H and W, or offset not in 0..factor-1.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        factor: int = 4,
        kernel: str | Path | Tensor = "bicubic",
        offset: int = 0,
        taps: int | None = None,
        intensity: float | None = None,
        std: float | Sequence[float] | None = None,
        angle: float | None = None,
        radius: float | None = None,
        normalise: bool | None = None,
        seed: int = 0,
    ) -> None:
        _, height, width = shape_of(image_shape, 3)
        reduced((height, width), factor)
        options = {"taps": taps, "intensity": intensity, "std": std, "angle": angle, "radius": radius, "normalise": normalise}
        given = sorted(key for key, value in options.items() if value is not None)
        if isinstance(kernel, str) and kernel == "bicubic":
            if given:
                raise ValueError(f"{', '.join(given)} means nothing for 'bicubic', whose width follows from factor")
            weights = bicubic_kernel(factor)
        else:
            weights = make_kernel(kernel, seed, **options)
        super().__init__(image_shape, weights, factor, offset)

    def view(self, y: Tensor) -> Tensor:
        """The small image, each pixel enlarged to a factor x factor block, clamped to [-1, 1]: (B, C, H, W)."""
        return enlarged(y, self.factor)
