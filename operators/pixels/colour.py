"""Operators that mix the channels of each pixel into one: colourisation here, demosaicing in `operators.pixels.demosaicing`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from operators.core.spectral import SpectralOperator
from operators.core.tensors import shape_of

_BT601 = (0.299, 0.587, 0.114)


class ChannelMix(SpectralOperator):
    """y = sum_c w_c x_c at every pixel: (B, C, H, W) -> (B, 1, H, W), with weights (C, H, W) or (C, 1, 1).

    A has one singular value per pixel, ||w||, with the unit vector w / ||w|| over the channels: all solves are closed form.
    Raises ValueError if the weights do not fit image_shape or are all zero at some pixel.
    """

    def __init__(self, image_shape: Sequence[int], weights: Tensor) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if tuple(weights.shape) not in ((channels, height, width), (channels, 1, 1)):
            raise ValueError(f"weights must have shape {(channels, height, width)} or {(channels, 1, 1)}, got {tuple(weights.shape)}")
        size = torch.linalg.vector_norm(weights.double(), dim=0, keepdim=True)
        if not bool((size > 0).all()):
            raise ValueError("the weights of a pixel are all zero: it would not be measured")
        super().__init__(image_shape, (1, height, width))
        self.register_buffer("size", size)
        self.register_buffer("unit", weights.double() / size)

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("size", like)

    def _right(self, c: Tensor) -> Tensor:
        return self._as("unit", c) * c

    def _right_adjoint(self, x: Tensor) -> Tensor:
        return (self._as("unit", x) * x).sum(1, keepdim=True)


class Colourisation(ChannelMix):
    """The grey image of a colour image: (B, C, H, W) -> (B, 1, H, W), in [-1, 1].

    weights="mean": the mean of the channels, any number of them (DDRM and DDNM, Kawar et al., arXiv:2201.11793);
    weights="bt601": 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601 luma), three channels. Prox and pseudo-inverse, which gives the
    grey image as the colour image nearest to zero, are closed form.

    Raises ValueError for other weights, or for bt601 without three channels.
    """

    def __init__(self, image_shape: Sequence[int], weights: str = "mean") -> None:
        channels = shape_of(image_shape, 3)[0]
        if weights not in ("mean", "bt601"):
            raise ValueError(f"weights must be 'mean' or 'bt601', got {weights!r}")
        if weights == "bt601" and channels != 3:
            raise ValueError(f"weights='bt601' needs the 3 channels R, G, B, got image_shape {tuple(image_shape)}")
        values = _BT601 if weights == "bt601" else [1 / channels] * channels
        super().__init__(image_shape, torch.tensor(values, dtype=torch.float64)[:, None, None])
        self.weights = weights
