"""Turning any batch of tensors into pictures a person can look at."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_picture(t: Tensor) -> bool:
    """Whether t is a batch of real images (B, 1 or 3, H, W)."""
    return t.ndim == 4 and t.shape[1] in (1, 3) and not t.is_complex()


def as_picture(t: Tensor, normalise: bool = False) -> Tensor:
    """Picture (B, 1 or 3, H, W) in [-1, 1] of t (B, ...).

    Images (B, 1 or 3, H, W) are clamped, or divided by their largest magnitude if `normalise`. Anything else is shown as
    a grey magnitude or raster, scaled per sample so that the largest magnitude is 1: complex entries and two-channel images
    (real, imaginary) by modulus, from black; other maps (B, ..., H, W) with their leading axes stacked vertically; vectors
    folded into rows of a nearly square picture, padded with zeros.
    """
    if is_picture(t) and not normalise:
        return t.clamp(-1, 1)
    modulus = t.is_complex() or (t.ndim == 4 and t.shape[1] == 2)
    if t.is_complex():
        t = t.abs()
    elif modulus:
        t = torch.linalg.vector_norm(t, dim=1, keepdim=True)
    if t.ndim <= 2:
        flat = t.reshape(t.shape[0], -1)
        side = math.isqrt(flat.shape[1] - 1) + 1
        rows = -(-flat.shape[1] // side)
        t = torch.nn.functional.pad(flat, (0, rows * side - flat.shape[1])).reshape(-1, 1, rows, side)
    elif not is_picture(t):
        t = t.reshape(t.shape[0], 1, -1, t.shape[-1])
    top = t.abs().amax(dim=(1, 2, 3), keepdim=True)
    t = t / torch.where(top > 0, top, 1.0)
    return 2 * t - 1 if modulus else t
