"""Operators with a known singular value decomposition, hence closed forms for every solve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from operators.core.base import LinearOperator
from operators.core.tensors import shape_of


class SpectralOperator(LinearOperator):
    """A = U diag(s) V^T with U, V of orthonormal columns and s >= 0: prox and pseudo-inverse in closed form.

    A subclass writes the four isometries and `_singular_values`; it may override `_forward` and `_adjoint` where those are
    cheaper or more accurate without the decomposition. Spectra are (B, ...) and broadcast against `_singular_values`.
    """

    closed_form = True
    closed_form_inverse = True

    def _expect(self, t: Tensor, shape: tuple[int, ...] | None, name: str) -> None:
        super()._expect(t, shape, name)
        # Signals and measurements are both real, as the decomposition is.
        self._expect_real(t, name)

    def _singular_values(self, like: Tensor) -> Tensor:
        raise NotImplementedError

    def _left(self, c: Tensor) -> Tensor:
        """U c: spectrum to measurement."""
        return c

    def _left_adjoint(self, y: Tensor) -> Tensor:
        """U^T y: measurement to spectrum."""
        return y

    def _right(self, c: Tensor) -> Tensor:
        """V c: spectrum to signal."""
        return c

    def _right_adjoint(self, x: Tensor) -> Tensor:
        """V^T x: signal to spectrum."""
        return x

    def _forward(self, x: Tensor) -> Tensor:
        return self._left(self._singular_values(x) * self._right_adjoint(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._right(self._singular_values(y) * self._left_adjoint(y))

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        # As a correction of z: what A does not see of z is returned to the last bit.
        s = self._singular_values(z)
        gap = self._left_adjoint(y) - s * self._right_adjoint(z)
        if isinstance(gamma, Tensor):
            gamma = gamma.reshape(-1, *[1] * (gap.ndim - 1))
        return z + self._right(gamma * s / (1 + gamma * s * s) * gap)

    def _pseudo_inverse(self, y: Tensor, tol: float | None, max_iter: int) -> Tensor:
        s = self._singular_values(y)
        side = max(*self.image_shape, *self.measurement_shape)
        keep = s > torch.finfo(s.dtype).eps * side * s.amax()
        inverse = torch.where(keep, 1 / torch.where(keep, s, 1.0), 0.0)
        return self._right(inverse * self._left_adjoint(y))


class SeparableOperator(SpectralOperator):
    """X -> R X C^T on every channel, with small dense matrices R (h, H) along columns and C (w, W) along rows.

    Signals (B, C, H, W), measurements (B, C, h, w). The decomposition follows from those of R and C, computed once in
    float64: s = s_R s_C^T, U = U_R x U_C, V = V_R x V_C. A, A^T and each isometry are two matrix products, in the precision
    of the input also under autocast.

    Raises ValueError if the matrices do not fit image_shape.
    """

    def __init__(self, image_shape: Sequence[int], rows: Tensor, cols: Tensor) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if rows.shape[1] != height or cols.shape[1] != width:
            raise ValueError(f"matrices {tuple(rows.shape)} and {tuple(cols.shape)} do not fit an image {height}x{width}")
        super().__init__(image_shape, (channels, rows.shape[0], cols.shape[0]))
        for name, matrix in (("rows", rows), ("cols", cols)):
            matrix = matrix.detach().double()
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            self.register_buffer(name, matrix)
            self.register_buffer(f"{name}_u", u.contiguous())
            self.register_buffer(f"{name}_s", s)
            self.register_buffer(f"{name}_v", vt.mT.contiguous())

    def _sandwich(self, x: Tensor, kind: str, transpose: bool) -> Tensor:
        left, right = self._as(f"rows{kind}", x), self._as(f"cols{kind}", x)
        with torch.autocast(x.device.type, enabled=False):
            return left.mT @ x @ right if transpose else left @ x @ right.mT

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("rows_s", like)[:, None] * self._as("cols_s", like)

    def _forward(self, x: Tensor) -> Tensor:
        return self._sandwich(x, "", transpose=False)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._sandwich(y, "", transpose=True)

    def _left(self, c: Tensor) -> Tensor:
        return self._sandwich(c, "_u", transpose=False)

    def _left_adjoint(self, y: Tensor) -> Tensor:
        return self._sandwich(y, "_u", transpose=True)

    def _right(self, c: Tensor) -> Tensor:
        return self._sandwich(c, "_v", transpose=False)

    def _right_adjoint(self, x: Tensor) -> Tensor:
        return self._sandwich(x, "_v", transpose=True)
