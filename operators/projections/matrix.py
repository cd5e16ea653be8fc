"""Any linear map small enough to be written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from operators.core.files import read_array
from operators.core.spectral import SpectralOperator
from operators.core.tensors import shape_of


class Matrix(SpectralOperator):
    """y = A vec(x): a dense real matrix A (m, n), n = prod(image_shape); x (B, *image_shape) -> y (B, m).

    `A` is a tensor, an array, or the path of a .npy or .pt file; vec is row-major. Solves use the SVD, computed once in
    float64.

    Raises ValueError if the file is missing or of another kind, or if A is not a real, finite (m, n) matrix.
    """

    def __init__(self, A: Tensor | np.ndarray | str | Path, image_shape: Sequence[int]) -> None:
        image_shape = shape_of(image_shape)
        matrix, _ = read_array(A, "matrix", images=False)
        n = math.prod(image_shape)
        if matrix.ndim != 2 or matrix.shape[1] != n or matrix.shape[0] < 1:
            raise ValueError(f"A must have shape (m, {n}) for image_shape {image_shape}, got {tuple(matrix.shape)}")
        super().__init__(image_shape, (matrix.shape[0],))
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        self.register_buffer("matrix", matrix)
        self.register_buffer("u", u.contiguous())
        self.register_buffer("s", s)
        self.register_buffer("v", vt.mT.contiguous())

    def _times(self, x: Tensor, name: str, transpose: bool = False) -> Tensor:
        m = self._as(name, x)
        with torch.autocast(x.device.type, enabled=False):
            return x.flatten(1) @ (m if transpose else m.mT)

    def _shaped(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.image_shape)

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("s", like)

    def _forward(self, x: Tensor) -> Tensor:
        return self._times(x, "matrix")

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._shaped(self._times(y, "matrix", transpose=True))

    def _left(self, c: Tensor) -> Tensor:
        return self._times(c, "u")

    def _left_adjoint(self, y: Tensor) -> Tensor:
        return self._times(y, "u", transpose=True)

    def _right(self, c: Tensor) -> Tensor:
        return self._shaped(self._times(c, "v"))

    def _right_adjoint(self, x: Tensor) -> Tensor:
        return self._times(x, "v", transpose=True)
