"""Denoising: the measurement is the image itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from operators.core.spectral import SpectralOperator
from operators.core.tensors import shape_of


class Identity(SpectralOperator):
    """A(x) = x, (B, *image_shape) -> (B, *image_shape): with noise, the denoising problem.

    Any image_shape of positive integers; ValueError otherwise. x may also be complex (behind a map that gives complex values).
    """

    complex_signals = True

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__(shape_of(image_shape), image_shape)
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("one", like)

    def _forward(self, x: Tensor) -> Tensor:
        return x.clone()

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.clone()
