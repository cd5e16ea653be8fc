"""Convolution by the Fourier transform: its boundaries with their exact adjoints, and the circular one's decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from operators.core.base import LinearOperator
from operators.core.spectral import SpectralOperator
from operators.core.tensors import shape_of

BOUNDARIES = ("circular", "reflect", "zero", "valid")


def rfft2(x: Tensor, s: tuple[int, int] | None = None) -> Tensor:
    """Orthonormal 2-D real transform of the last axes, in single precision at least, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.fft.rfft2(widened(x), s=s, norm="ortho")


def irfft2(spectrum: Tensor, s: tuple[int, int]) -> Tensor:
    """Inverse of `rfft2` to sides s."""
    with torch.autocast(spectrum.device.type, enabled=False):
        return torch.fft.irfft2(spectrum, s=s, norm="ortho")


def widened(x: Tensor) -> Tensor:
    """x itself, or x in float32 where it has a half precision, for which there are no Fourier transforms."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def wrapped(kernel: Tensor, sides: tuple[int, int], shift: int = 0) -> Tensor:
    """Kernels (..., kh, kw) laid on a periodic grid (..., *sides), tap (kh // 2 + shift, kw // 2 + shift) at the origin."""
    for axis, side in ((-2, sides[0]), (-1, sides[1])):
        taps = kernel.shape[axis]
        at = (torch.arange(taps) - taps // 2 - shift) % side
        shape = list(kernel.shape)
        shape[axis] = side
        kernel = torch.zeros(shape, dtype=kernel.dtype).index_add_(axis, at, kernel)
    return kernel


class Window(NamedTuple):
    """How a boundary is reduced to a periodic convolution.

    The image (`sides`) is reflected by (`before`, `after`) per axis, set into a periodic `grid` of zeros at its origin,
    convolved, and `out` samples are kept from `offset` on.
    """

    sides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    grid: tuple[int, int]
    offset: tuple[int, int]
    out: tuple[int, int]


def _fast(n: int) -> int:
    """Smallest number >= n without prime factors above 5, whose transforms are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def window(sides: tuple[int, int], taps: tuple[int, int], boundary: str) -> Window:
    """The window of a convolution of an image (H, W) = `sides` with kernels of `taps` (kh, kw).

    Pixels beyond the border: "circular" repeat the image, "reflect" mirror it about the border pixels without repeating them
    (scipy's "mirror", torch's ReflectionPad2d), "zero" are 0; "valid" measures only where none are needed,
    (H - kh + 1, W - kw + 1). Raises ValueError for another boundary, for "reflect" if the kernel reaches further than the
    image is wide, and for "valid" if it is larger than the image.
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    none, same = (0, 0), (sides[0], sides[1])
    reach = [(n - 1 - n // 2, n // 2) for n in taps]
    if boundary == "circular":
        return Window(same, none, none, same, none, same)
    shown = f"a kernel of {taps[0]}x{taps[1]}"
    if boundary == "zero":
        grid = [_fast(side + max(pair)) for side, pair in zip(sides, reach, strict=True)]
        return Window(same, none, none, (grid[0], grid[1]), none, same)
    first, last = (reach[0][0], reach[1][0]), (reach[0][1], reach[1][1])
    if boundary == "valid":
        out = (sides[0] - taps[0] + 1, sides[1] - taps[1] + 1)
        if min(out) < 1:
            raise ValueError(f"{shown} is larger than the image of {sides[0]}x{sides[1]}: no pixel is valid")
        return Window(same, none, none, (_fast(sides[0]), _fast(sides[1])), first, out)
    if any(max(pair) >= side for side, pair in zip(sides, reach, strict=True)):
        raise ValueError(f"{shown} reaches too far to reflect an image of {sides[0]}x{sides[1]}: sides must exceed {max(map(max, reach))}")
    return Window(same, first, last, (_fast(sides[0] + taps[0] - 1), _fast(sides[1] + taps[1] - 1)), first, same)


def _reflect(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    n = x.shape[axis]
    return torch.cat([x.narrow(axis, 1, before).flip(axis), x, x.narrow(axis, n - 1 - after, after).flip(axis)], axis)


def _placed(x: Tensor, axis: int, first: int, size: int) -> Tensor:
    """x at position `first` of zeros of length `size` along an axis (-1 or -2)."""
    rest = size - first - x.shape[axis]
    return torch.nn.functional.pad(x, (first, rest) if axis == -1 else (0, 0, first, rest))


def _reflect_adjoint(y: Tensor, axis: int, before: int, after: int) -> Tensor:
    # Sums of shifted pieces: a scatter would add in no fixed order on a GPU.
    n = y.shape[axis] - before - after
    head, tail = y.narrow(axis, 0, before).flip(axis), y.narrow(axis, before + n, after).flip(axis)
    return y.narrow(axis, before, n) + _placed(head, axis, 1, n) + _placed(tail, axis, n - 1 - after, n)


def embed(x: Tensor, w: Window) -> Tensor:
    """Images (..., H, W) to the spectrum of the extended image on the periodic grid."""
    for axis in (-2, -1):
        if w.before[axis] or w.after[axis]:
            x = _reflect(x, axis, w.before[axis], w.after[axis])
    return rfft2(x, w.grid)


def embed_adjoint(spectrum: Tensor, w: Window) -> Tensor:
    """Transpose of `embed`."""
    y = irfft2(spectrum, w.grid)
    y = y[..., : w.sides[0] + w.before[0] + w.after[0], : w.sides[1] + w.before[1] + w.after[1]]
    for axis in (-2, -1):
        if w.before[axis] or w.after[axis]:
            y = _reflect_adjoint(y, axis, w.before[axis], w.after[axis])
    return y


def crop(spectrum: Tensor, w: Window) -> Tensor:
    """Spectrum on the grid to the measured pixels (..., *out)."""
    y = irfft2(spectrum, w.grid)
    return y[..., w.offset[0] : w.offset[0] + w.out[0], w.offset[1] : w.offset[1] + w.out[1]]


def crop_adjoint(y: Tensor, w: Window) -> Tensor:
    """Transpose of `crop`."""
    return rfft2(_placed(_placed(y, -2, w.offset[0], w.grid[0]), -1, w.offset[1], w.grid[1]))


def half_spectrum(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """Transfer function of kernels (..., kh, kw) on a grid: (..., H, W // 2 + 1, 2), real and imaginary parts, float64."""
    return torch.view_as_real(torch.fft.rfft2(wrapped(kernel, grid))).contiguous()


class Convolution(LinearOperator):
    """True convolution of every channel with a kernel (kh, kw) under one of four boundaries (see `window`).

    (B, C, H, W) -> (B, C, H, W), for boundary="valid" (B, C, H - kh + 1, W - kw + 1). A and A^T are exact transposes of each
    other; solves use conjugate gradients (`CircularConvolution` has closed forms). ValueError as `window`.
    """

    def __init__(self, image_shape: Sequence[int], kernel: Tensor, boundary: str) -> None:
        channels, height, width = shape_of(image_shape, 3)
        self.window = window((height, width), (kernel.shape[0], kernel.shape[1]), boundary)
        super().__init__(image_shape, (channels, *self.window.out))
        self.register_buffer("kernel", kernel.double())
        self.register_buffer("spectrum", half_spectrum(kernel.double(), self.window.grid))

    def _transfer(self, like: Tensor) -> Tensor:
        return torch.view_as_complex(self._as("spectrum", widened(like)))

    def _forward(self, x: Tensor) -> Tensor:
        return crop(self._transfer(x) * embed(x, self.window), self.window).to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return embed_adjoint(self._transfer(y).conj() * crop_adjoint(y, self.window), self.window).to(y.dtype)


def _negated(t: Tensor) -> Tensor:
    """t at the frequencies -k."""
    return t.flip((-2, -1)).roll((1, 1), (-2, -1))


def to_hartley(half: Tensor, width: int) -> Tensor:
    """Half spectrum (..., H, W // 2 + 1) of a real image to its Hartley coefficients Re - Im, real (..., H, W).

    The Hartley transform is real, orthonormal and its own inverse, whereas half spectra count most frequencies once and
    the rest twice.
    """
    rest = (half.real + half.imag)[..., 1 : (width + 1) // 2]
    return torch.cat([half.real - half.imag, rest.flip((-2, -1)).roll(1, -2)], -1)


def from_hartley(c: Tensor, columns: int) -> Tensor:
    """The first `columns` columns of the spectrum whose Hartley coefficients are c (..., H, W)."""
    mirrored = _negated(c)[..., :columns]
    c = c[..., :columns]
    return torch.complex((c + mirrored) / 2, (mirrored - c) / 2)


def reduced(sides: tuple[int, int], factor: int) -> tuple[int, int]:
    """(H / factor, W / factor); ValueError unless factor is an integer >= 1 that divides both."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"factor must be an integer >= 1, got {factor!r}")
    if sides[0] % factor or sides[1] % factor:
        raise ValueError(f"factor {factor} must divide both sides of the image, got {sides[0]}x{sides[1]}")
    return sides[0] // factor, sides[1] // factor


class CircularConvolution(SpectralOperator):
    """y = (k * x)[offset::factor, offset::factor], circular: (B, C, H, W) -> (B, C, H / factor, W / factor).

    True convolution with a kernel (kh, kw) centred on tap (kh // 2, kw // 2); one larger than the image wraps. A A^T is
    again a circular convolution, with transfer function s^2(q) = factor^-2 sum |K(k)|^2 over the factor^2 frequencies k
    that alias to q (Zhao et al., arXiv:1510.00143, Sec. III), so that A = U diag(s) V^T with U the Hartley transform of the
    small image and V = A^T U / s: prox and pseudo-inverse cost a few Fourier transforms. factor=1 is plain convolution.

    Raises ValueError if factor does not divide H and W or offset is not in 0..factor-1.
    """

    def __init__(self, image_shape: Sequence[int], kernel: Tensor, factor: int = 1, offset: int = 0) -> None:
        channels, height, width = shape_of(image_shape, 3)
        h, w = reduced((height, width), factor)
        if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < factor:
            raise ValueError(f"offset must be an integer in 0..{factor - 1}, got {offset!r}")
        super().__init__(image_shape, (channels, h, w))
        full = torch.fft.fft2(wrapped(kernel.double(), (height, width), offset))
        # Rounding breaks the symmetry of a real kernel's spectrum, visibly where that is nearly zero.
        full = (full + _negated(full).conj()) / 2
        half = full[:, : width // 2 + 1]
        s = (full.abs() ** 2).reshape(factor, h, factor, w).mean((0, 2)).sqrt()
        s = (s + _negated(s)) / 2
        scale = s.repeat(factor, factor)[:, : width // 2 + 1]
        unit = torch.where(scale > 0, half / torch.where(scale > 0, scale, 1.0), 0.0)
        self.register_buffer("kernel", kernel.double())
        self.register_buffer("s", s)
        for name, spectrum in (("spectrum", half), ("unit", unit)):
            self.register_buffer(name, torch.view_as_real(spectrum.contiguous()).contiguous())
        self.factor, self.offset = factor, offset

    def _transfer(self, name: str, like: Tensor) -> Tensor:
        return torch.view_as_complex(self._as(name, widened(like)))

    def _reduce(self, x: Tensor, name: str) -> Tensor:
        """The small image (filter * x)[::factor, ::factor]; rows are left out in the spectrum, where it is a mean."""
        spectrum = self._transfer(name, x) * rfft2(x)
        if self.factor == 1:
            return irfft2(spectrum, (x.shape[-2], x.shape[-1]))
        rows = spectrum.unflatten(-2, (self.factor, -1)).mean(-3)
        return irfft2(rows, (rows.shape[-2], x.shape[-1]))[..., :: self.factor] * math.sqrt(self.factor)

    def _spread(self, spectrum: Tensor, name: str) -> Tensor:
        """Transpose of `_reduce`, from the small image's spectrum: a half spectrum if factor is 1, else a full one."""
        height, width = self.image_shape[-2:]
        if self.factor > 1:
            spectrum = spectrum.repeat(*[1] * (spectrum.ndim - 2), self.factor, self.factor)[..., : width // 2 + 1] / self.factor
        return irfft2(self._transfer(name, spectrum.real).conj() * spectrum, (height, width))

    def _forward(self, x: Tensor) -> Tensor:
        return self._reduce(x, "spectrum").to(x.dtype)

    def _analysed(self, y: Tensor) -> Tensor:
        """Spectrum of a small image, in the layout that `_spread` takes."""
        with torch.autocast(y.device.type, enabled=False):
            return rfft2(y) if self.factor == 1 else torch.fft.fft2(widened(y), norm="ortho")

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._spread(self._analysed(y), "spectrum").to(y.dtype)

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        # The base class's formula, as z + A^T (gamma / (1 + gamma A A^T)) (y - A z) on plain spectra: Hartley coefficients
        # would cost as much again.
        if self.factor == 1:
            gap = rfft2(y) - self._transfer("spectrum", z) * rfft2(z)
        else:
            gap = self._analysed(y - self._forward(z))
        s = self._as("s", gap.real)[:, : gap.shape[-1]]
        return z + self._spread(gamma / (1 + gamma * s * s) * gap, "spectrum").to(z.dtype)

    def _left(self, c: Tensor) -> Tensor:
        h, w = c.shape[-2:]
        return irfft2(from_hartley(widened(c), w // 2 + 1), (h, w)).to(c.dtype)

    def _left_adjoint(self, y: Tensor) -> Tensor:
        return to_hartley(rfft2(y), y.shape[-1]).to(y.dtype)

    def _right(self, c: Tensor) -> Tensor:
        width = c.shape[-1]
        columns = width // 2 + 1 if self.factor == 1 else width
        return self._spread(from_hartley(widened(c), columns), "unit").to(c.dtype)

    def _right_adjoint(self, x: Tensor) -> Tensor:
        half = self._transfer("unit", x) * rfft2(x) if self.factor == 1 else rfft2(self._reduce(x, "unit"))
        return to_hartley(half, self.measurement_shape[-1]).to(x.dtype)

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("s", like)
