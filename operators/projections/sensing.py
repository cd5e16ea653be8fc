"""Compressed sensing: fewer random projections than pixels, dense or structured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from operators.blur.convolution import widened
from operators.core.spectral import SpectralOperator
from operators.core.streams import generator
from operators.core.tensors import shape_of
from operators.projections.matrix import Matrix

_LARGEST = 2**25


def _count(measurements: int, image_shape: tuple[int, ...]) -> int:
    """The number n of entries of a signal; ValueError unless 1 <= measurements <= n."""
    n = math.prod(image_shape)
    if isinstance(measurements, bool) or not isinstance(measurements, int) or not 1 <= measurements <= n:
        raise ValueError(f"measurements must be an integer from 1 to {n}, the size of image_shape {image_shape}, got {measurements!r}")
    return n


class CompressedSensing(Matrix):
    """y = G vec(x) with G (m, n) of independent N(0, 1/m) entries, m = `measurements`: (B, *image_shape) -> (B, m).

    E ||G x||^2 = ||x||^2. G is drawn once, here, from `seed`; its SVD, computed once, makes every solve closed form. Takes
    24 bytes per entry of G and a time of order m^2 n to construct: above 2^25 entries use StructuredSensing, which needs neither.
    Source: Candes, Romberg, Tao, IEEE Trans. Inf. Theory 52 (2006).

    Raises ValueError if measurements is not an integer from 1 to n, or if G would have more than 2^25 entries.
    """

    def __init__(self, image_shape: Sequence[int], measurements: int, seed: int = 0) -> None:
        n = _count(measurements, shape_of(image_shape))
        if measurements * n > _LARGEST:
            raise ValueError(f"a dense matrix of {measurements} x {n} exceeds {_LARGEST} entries; use structured_sensing for it")
        entries = torch.randn(measurements, n, generator=generator(seed, "compressed sensing"), dtype=torch.float64)
        super().__init__(entries / math.sqrt(measurements), image_shape)


class StructuredSensing(SpectralOperator):
    """y = R H D x: random signs D, an orthonormal transform H, a random subset R of m = `measurements` of its coefficients.

    (B, *image_shape) -> (B, m). H is the discrete Hartley transform over all axes, Re F - Im F of the orthonormal FFT, which is
    real, symmetric and its own inverse (Bracewell, J. Opt. Soc. Am. 73, 1983), for any size. Rows are orthonormal, so prox and
    pseudo-inverse are closed form, at the price of one FFT. Signs and subset (uniform without replacement, in increasing order)
    are drawn once, here, from `seed`. Source: Do, Gan, Nguyen, Tran, IEEE Trans. Signal Process. 60 (2012).

    Raises ValueError if measurements is not an integer from 1 to the size n of the signal.
    """

    def __init__(self, image_shape: Sequence[int], measurements: int, seed: int = 0) -> None:
        shape = shape_of(image_shape)
        n = _count(measurements, shape)
        super().__init__(shape, (measurements,))
        rng = generator(seed, "structured sensing")
        self.register_buffer("signs", 2.0 * torch.randint(2, shape, generator=rng).double() - 1)
        self.register_buffer("rows", torch.randperm(n, generator=rng)[:measurements].sort().values)
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    def _transform(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fftn(widened(x), dim=tuple(range(1, x.ndim)), norm="ortho")
        return (spectrum.real - spectrum.imag).to(x.dtype)

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("one", like)

    def _right(self, c: Tensor) -> Tensor:
        full = c.new_zeros(c.shape[0], math.prod(self.image_shape)).index_copy(1, self.rows.to(c.device), c)
        return self._as("signs", c) * self._transform(full.reshape(-1, *self.image_shape))

    def _right_adjoint(self, x: Tensor) -> Tensor:
        return self._transform(self._as("signs", x) * x).flatten(1).index_select(1, self.rows.to(x.device))
