"""Phase retrieval: only the modulus of a complex field that is linear in the image is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from operators.blur.convolution import widened
from operators.core.ambiguity import nearest_equivalent
from operators.core.base import Operator
from operators.core.fourier import fft2c
from operators.core.picture import as_picture
from operators.core.streams import generator
from operators.core.tensors import pull_back, shape_of


def whole(value: int, least: int, name: str) -> int:
    """`value` if it is an int of at least `least`; ValueError naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return value


class Phaseless(Operator):
    """y = |B u| (output="magnitude") or |B u|^2 (output="intensity"), with B complex and linear, u a real object.

    Signals (B, C, H, W); every channel is measured alone. The object is the image itself (range="signed", u = x in [-1, 1])
    or its intensity (range="unit", u = (x + 1)/2 in [0, 1]): two different problems, as the second has a large mean, half the
    contrast against the same noise, and a sign. The noise on y is in units of y, whichever of these that is. Poisson noise
    maps to [0, 1] itself, so it goes with range="signed" and output="intensity".

    A subclass writes `field`. The gradient of the magnitude where the field vanishes is taken as zero; elsewhere `A_vjp` is
    exact (reverse-mode differentiation).

    Raises ValueError for another output or range.
    """

    flips = False
    max_shift = 0

    def __init__(self, image_shape: Sequence[int], measurement_shape: Sequence[int], output: str, range: str) -> None:
        shape_of(image_shape, 3)
        if output not in ("magnitude", "intensity"):
            raise ValueError(f"output must be 'magnitude' or 'intensity', got {output!r}")
        if range not in ("signed", "unit"):
            raise ValueError(f"range must be 'signed' (x in [-1, 1]) or 'unit' ((x + 1)/2 in [0, 1]), got {range!r}")
        super().__init__(image_shape, measurement_shape)
        self.output, self.range = output, range
        # With range="unit" A converts from [-1, 1] itself.
        self.takes_light = range == "signed"

    # -- what a subclass writes -------------------------------------------------------------------------------------------

    def field(self, u: Tensor) -> Tensor:
        """B u, real objects (B, *image_shape) -> complex fields (B, *measurement_shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define field(u)")

    # -- objects, fields and magnitudes -----------------------------------------------------------------------------------

    def field_adjoint(self, f: Tensor) -> Tensor:
        """Re B^H f, complex fields (B, *measurement_shape) -> real objects (B, *image_shape): the adjoint on real objects."""
        return pull_back(self.field, f.real.new_zeros((f.shape[0], *self.image_shape)), f)

    def to_object(self, x: Tensor) -> Tensor:
        """The object u of an image x in [-1, 1]."""
        return (x + 1) / 2 if self.range == "unit" else x

    def to_image(self, u: Tensor) -> Tensor:
        """The image x of an object u; the inverse of `to_object`."""
        return 2 * u - 1 if self.range == "unit" else u

    def magnitude(self, y: Tensor) -> Tensor:
        """|B u| as far as a noisy y tells: negative entries count as zero, intensities are square-rooted."""
        positive = y.clamp(min=0)
        return positive.sqrt() if self.output == "intensity" else positive

    def _complex(self, name: str, like: Tensor) -> Tensor:
        """Buffer `name`, stored as (..., 2), as a complex tensor in the precision of `like`."""
        return torch.view_as_complex(self._as(name, like))

    def _forward(self, x: Tensor) -> Tensor:
        f = self.field(self.to_object(widened(x)))
        # |f| by torch.abs has the gradient 0 at 0; a square root of the intensity would have NaN.
        return (f.real.square() + f.imag.square() if self.output == "intensity" else f.abs()).to(x.dtype)

    def view(self, y: Tensor) -> Tensor:
        """Logarithm of the magnitude over three decades, the largest of each sample white; several patterns are tiled."""
        m = self.magnitude(y).detach()
        if m.shape[1] != 3:
            m = m.square().mean(1, keepdim=True).sqrt()
        if m.ndim == 5:
            count = m.shape[2]
            across = math.isqrt(count - 1) + 1
            down = -(-count // across)
            tiles = pad(m, (0, 0, 0, 0, 0, across * down - count)).unflatten(2, (down, across))
            m = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        top = m.amax(dim=(1, 2, 3), keepdim=True)
        grey = torch.log1p(1000 * m / torch.where(top > 0, top, 1.0)) / math.log(1001)
        return as_picture(2 * grey - 1)

    def align(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """`estimate` under the symmetry of A that brings it nearest to `reference`, both (B, C, H, W).

        Chosen for each sample and each channel, as the channels are measured apart: the global sign where range="signed"
        (the prior, or the eye, must tell x from -x), and for `FourierMagnitude` the point reflection and shifts.
        """
        self._expect(estimate, self.image_shape, "estimate")
        self._expect(reference, self.image_shape, "reference")
        signed = self.range == "signed"
        return nearest_equivalent(estimate, reference, self.flips, signed, self.max_shift, 0.0 if signed else -1.0)


class FourierMagnitude(Phaseless):
    """Oversampled Fourier magnitude, y = |F pad(u)|: (B, C, H, W) -> (B, C, H + 2p, W + 2q).

    Each side is padded with zeros by p = floor(oversample / 8 * side) at both ends (16 of 64, so 96 x 96 values, for the
    published oversample=2), and F is the centred orthonormal Fourier transform (`operators.core.fourier.fft2c`). The published
    setting is range="signed", output="magnitude", oversample=2 with noise of standard deviation 0.05 on y (DPS, Chung et al.,
    arXiv:2209.14687, Sec. 4 and App. D); DAPS and PnP-DM measure (x + 1)/2, range="unit".

    y does not tell u from its point reflection, from -u (range="signed" only), or from itself shifted where its border is
    empty; as the channels are measured apart, neither in all of them together. `align` resolves reflection and sign, and
    shifts of up to `max_shift` pixels (off by default: a photograph fills its frame, and cannot shift).

    Raises ValueError for a negative or non-finite oversample, and for a max_shift that is not within the frame.
    """

    flips = True

    def __init__(
        self,
        image_shape: Sequence[int],
        oversample: float = 2.0,
        output: str = "magnitude",
        range: str = "signed",
        max_shift: int = 0,
    ) -> None:
        channels, *sides = shape_of(image_shape, 3)
        if not (math.isfinite(oversample) and oversample >= 0):
            raise ValueError(f"oversample must be a finite number >= 0 (2 pads a quarter of the side at each end), got {oversample!r}")
        if whole(max_shift, 0, "max_shift") >= min(sides):
            raise ValueError(f"max_shift={max_shift} moves an image of {sides[0]}x{sides[1]} out of its frame")
        # A decimal fraction of the side is meant, not its binary rounding (1.6 / 8 * 5 is 1).
        self.margins = [math.floor(oversample / 8 * n + 1e-9) for n in sides]
        super().__init__(image_shape, (channels, *(n + 2 * p for n, p in zip(sides, self.margins, strict=True))), output, range)
        self.max_shift = max_shift

    def padded(self, u: Tensor) -> Tensor:
        """u (B, C, H, W) in the middle of the zero-padded canvas (B, C, H + 2p, W + 2q)."""
        p, q = self.margins
        return pad(u, (q, q, p, p))

    def cropped(self, canvas: Tensor) -> Tensor:
        """The middle (B, C, H, W) of a canvas; the adjoint of `padded`."""
        (p, q), (_, h, w) = self.margins, self.image_shape
        return canvas[..., p : p + h, q : q + w]

    def field(self, u: Tensor) -> Tensor:
        """The centred orthonormal spectrum of the padded object."""
        return fft2c(self.padded(u))


class CodedDiffraction(Phaseless):
    """Coded diffraction patterns, y_k = |F (d_k u)| for k < patterns: (B, C, H, W) -> (B, C, patterns, H, W).

    F is the centred orthonormal Fourier transform; the masks d_k, drawn once from `seed`, are shared by the channels. kind="octanary":
    entries b1 b2, b1 uniform on {1, -1, i, -i}, b2 = sqrt(1/2) or sqrt(3) with probabilities 4/5 and 1/5; kind="phase":
    uniform phases. Either way E|d|^2 = 1, so that every pattern carries the energy of the image. Left over is the global sign
    (range="signed"), given enough patterns.
    Source: Candes, Li, Soltanolkotabi, "Phase retrieval from coded diffraction patterns", ACHA 2015 (equation 1.9).

    Raises ValueError for another kind or patterns < 1.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patterns: int = 4,
        kind: str = "octanary",
        output: str = "magnitude",
        range: str = "signed",
        seed: int = 0,
    ) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if kind not in ("octanary", "phase"):
            raise ValueError(f"kind must be 'octanary' or 'phase', got {kind!r}")
        super().__init__(image_shape, (channels, whole(patterns, 1, "patterns"), height, width), output, range)
        rng, shape = generator(seed, "coded diffraction", kind), (patterns, height, width)
        if kind == "octanary":
            angle = torch.randint(0, 4, shape, generator=rng).double() * (math.pi / 2)
            weak = torch.rand(shape, generator=rng, dtype=torch.float64) < 0.8
            modulus = torch.where(weak, 0.5, 3.0).double().sqrt()
        else:
            angle = 2 * math.pi * torch.rand(shape, generator=rng, dtype=torch.float64)
            modulus = torch.ones_like(angle)
        self.register_buffer("masks", torch.view_as_real(torch.polar(modulus, angle)))

    def field(self, u: Tensor) -> Tensor:
        """The centred orthonormal spectra of the masked objects."""
        return fft2c(self._complex("masks", u) * u[:, :, None])


class StructuredPhaseRetrieval(Phaseless):
    """Structured random phase retrieval, y = |F D_L ... F D_1 u|: (B, C, H, W) -> (B, C, h, w).

    F is the orthonormal Fourier transform and D_l are random diagonals drawn from `seed` and shared by the channels, of
    unit-modulus entries (kind="phase") or signs (kind="signs"). `size` (h, w), default (H, W): where it is larger, the object
    is padded with zeros about its middle first; where smaller, the middle of the field is kept. Left over is the global sign
    (range="signed"), given enough measurements.
    Source: Hu et al., "Structured random model for fast and robust phase retrieval", arXiv:2409.05734. deepinv's
    `StructuredRandomPhaseRetrieval` draws its phases from the global generator and has complex gradients for real images.

    Raises ValueError for another kind, layers < 1, or a size that is not two positive integers, or is larger along one side
    and smaller along the other.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        layers: int = 2,
        size: Sequence[int] | None = None,
        kind: str = "phase",
        output: str = "magnitude",
        range: str = "signed",
        seed: int = 0,
    ) -> None:
        channels, *sides = shape_of(image_shape, 3)
        if kind not in ("phase", "signs"):
            raise ValueError(f"kind must be 'phase' or 'signs', got {kind!r}")
        goal = sides if size is None else list(size)
        if len(goal) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in goal):
            raise ValueError(f"size must be two positive integers (h, w), got {size!r}")
        extra = [m - n for m, n in zip(goal, sides, strict=True)]
        if min(extra) < 0 < max(extra):
            raise ValueError(f"size {tuple(goal)} must be at least, or at most, the image's {tuple(sides)} along both sides")
        super().__init__(image_shape, (channels, *goal), output, range)
        shape = (whole(layers, 1, "layers"), *(max(pair) for pair in zip(goal, sides, strict=True)))
        uniform = torch.rand(shape, generator=generator(seed, "structured phase retrieval", kind), dtype=torch.float64)
        angle = 2 * math.pi * uniform if kind == "phase" else math.pi * (uniform < 0.5).double()
        self.register_buffer("diagonals", torch.view_as_real(torch.polar(torch.ones_like(uniform), angle)))

    def field(self, u: Tensor) -> Tensor:
        """F D_L ... F D_1 of the padded object, cropped to the measured size."""
        (_, height, width), (_, h, w) = self.image_shape, self.measurement_shape
        # The odd pixel goes before the image (deepinv's convention, which a test compares with).
        top, left = (abs(h - height) + 1) // 2, (abs(w - width) + 1) // 2
        larger = h >= height and w >= width
        f = pad(u, (left, w - width - left, top, h - height - top)) if larger else u
        for diagonal in self._complex("diagonals", u):
            f = torch.fft.fft2(diagonal * f, norm="ortho")
        return f if larger else f[..., top : top + h, left : left + w]
