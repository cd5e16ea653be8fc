"""Blur whose kernel changes across the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from operators.blur.convolution import crop, crop_adjoint, embed, embed_adjoint, half_spectrum, widened, window
from operators.blur.kernels import disk_kernel, gaussian_kernel, motion_kernel
from operators.core.base import LinearOperator
from operators.core.files import read_array
from operators.core.streams import generator
from operators.core.tensors import shape_of


def smooth_windows(size: int, count: int) -> Tensor:
    """(count, size): raised cosines centred on `count` equispaced points from end to end, which sum to 1 at every sample.

    (1 + cos(pi d)) / 2 at distance d in units of the spacing, zero beyond one spacing.
    """
    if count == 1:
        return torch.ones(1, size, dtype=torch.float64)
    at = torch.linspace(0, count - 1, size, dtype=torch.float64) if size > 1 else torch.zeros(1, dtype=torch.float64)
    distance = (at - torch.arange(count, dtype=torch.float64)[:, None]).abs().clamp(max=1)
    return (1 + torch.cos(math.pi * distance)) / 2


def _padded(kernels: list[Tensor]) -> Tensor:
    """Centred kernels of odd sides as one stack of the largest side."""
    side = max(kernel.shape[-1] for kernel in kernels)
    margins = [(side - kernel.shape[-1]) // 2 for kernel in kernels]
    return torch.stack([torch.nn.functional.pad(kernel, [m] * 4) for kernel, m in zip(kernels, margins, strict=True)])


def kernel_bank(kernel: str | Path | Tensor, count: int, seed: int, taps: int, intensity: float, std: float, radius: float) -> Tensor:
    """Stack (count, kh, kw) of kernels: drawn by name, each from its own stream of `seed`, or read from a file or tensor.

    Raises ValueError for an unknown name, a parameter out of range, or a stack of another number or shape.
    """
    if isinstance(kernel, str) and kernel in ("motion", "gaussian", "disk"):
        bank = []
        for index in range(count):
            rng = generator(seed, "kernel bank", index)
            if kernel == "motion":
                bank.append(motion_kernel(taps, intensity, int(torch.randint(2**62, (), generator=rng))))
                continue
            share = (1 + 2 * torch.rand(3, generator=rng, dtype=torch.float64)) / 3
            if kernel == "gaussian":
                bank.append(gaussian_kernel([std * float(share[0]), std * float(share[1])], 270 * float(share[2])))
            else:
                bank.append(disk_kernel(radius * float(share[0])))
        return _padded(bank)
    if isinstance(kernel, str) and not Path(kernel).suffix:
        raise ValueError(f"kernel must be 'motion', 'gaussian', 'disk', a .npy file or a tensor, got {kernel!r}")
    found, name = read_array(kernel, "kernel", images=False)
    if found.ndim != 3 or found.shape[0] != count or 0 in found.shape:
        raise ValueError(f"{name} must have shape ({count}, kh, kw), one kernel for each of the grid's points, got {tuple(found.shape)}")
    return found


class SpaceVaryingBlur(LinearOperator):
    """y = sum_k h_k * (w_k x), a product-convolution (B, C, H, W) -> (B, C, H, W), or smaller if boundary="valid".

    The image is cut by smooth windows w_k (K, H, W), raised cosines centred on a grid x grid net from corner to corner that
    sum to 1 everywhere, and the part around each point is convolved with that point's own kernel h_k (K, kh, kw), K = grid^2,
    row by row: the kernel varies smoothly across the image. `kernel`: "motion" (a path per point, `taps` and `intensity`
    as in `Blur`), "gaussian" (widths drawn in [std / 3, std], axis at random), "disk" (radii drawn in [radius / 3, radius]),
    or a .npy file or tensor (K, kh, kw) of your own. `boundary` as in `Blur`. Drawn once, here, from `seed`.

    The adjoint is exact; solves use conjugate gradients. Buffers `kernels` and `windows`. Source: the model of deepinv's
    SpaceVaryingBlur; Escande & Weiss, Approximation of integral operators using product-convolution expansions, 2017.

    Raises ValueError for grid < 1, an unknown kernel or boundary, values out of range, a stack of another size, or a kernel
    too large for "reflect" or "valid".
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        kernel: str | Path | Tensor = "motion",
        grid: int = 3,
        boundary: str = "circular",
        taps: int = 31,
        intensity: float = 0.5,
        std: float = 3.0,
        radius: float = 5.0,
        seed: int = 0,
    ) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
            raise ValueError(f"grid must be an integer >= 1, got {grid!r}")
        kernels = kernel_bank(kernel, grid**2, seed, taps, intensity, std, radius)
        self.window = window((height, width), (kernels.shape[-2], kernels.shape[-1]), boundary)
        super().__init__(image_shape, (channels, *self.window.out))
        rows, columns = smooth_windows(height, grid), smooth_windows(width, grid)
        self.register_buffer("kernels", kernels)
        self.register_buffer("windows", (rows[:, None, :, None] * columns[None, :, None, :]).reshape(grid**2, height, width))
        self.register_buffer("spectra", half_spectrum(kernels, self.window.grid))
        self.boundary = boundary

    def _transfer(self, like: Tensor) -> Tensor:
        return torch.view_as_complex(self._as("spectra", widened(like)))

    def _forward(self, x: Tensor) -> Tensor:
        parts = embed(self._as("windows", x) * x.unsqueeze(-3), self.window)
        return crop((self._transfer(x) * parts).sum(-3), self.window).to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        spectrum = crop_adjoint(y, self.window).unsqueeze(-3)
        parts = embed_adjoint(self._transfer(y).conj() * spectrum, self.window)
        return (self._as("windows", y) * parts).sum(-3).to(y.dtype)
