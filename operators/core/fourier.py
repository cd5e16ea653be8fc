"""The centred orthonormal Fourier transform of images, in one place."""

from __future__ import annotations

import torch
from torch import Tensor

_SIDES = (-2, -1)


def fft2c(x: Tensor) -> Tensor:
    """Orthonormal 2-D discrete Fourier transform of (..., H, W) with both origins in the middle, at index n // 2 of a side."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, _SIDES), norm="ortho"), _SIDES)


def ifft2c(f: Tensor) -> Tensor:
    """Inverse, and adjoint, of `fft2c`."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(f, _SIDES), norm="ortho"), _SIDES)
