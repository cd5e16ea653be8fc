"""JPEG-like quantisation of the cosine coefficients of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from operators.core.base import Operator
from operators.core.tensors import shape_of

# ITU-T T.81 (1992), tables K.1 and K.2.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
) + (99,) * 32  # fmt: skip
# JFIF 1.02, section "Conversion to and from RGB": rows Y, Cb, Cr without the offset of 128, which the level shift takes up.
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
# Flat blocks of bytes give coefficients of exactly k + 1/2; rounding errors, which depend on the batch, must not decide them.
_TIE = 1e-3


def quantisation_table(base: Sequence[int], quality: int) -> Tensor:
    """Table (8, 8), float64, for a quality of 1 to 100, scaled from `base` as the IJG library does (jpeg_quality_scaling)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(base, dtype=torch.float64).reshape(8, 8)
    return ((table * scale + 50) / 100).floor().clamp(1, 255)


def cosine_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II as a matrix (n, n), float64."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


class JPEG(Operator):
    """What a JPEG file of this `quality` (1 to 100) keeps of an image: (B, 1 or 3, H, W) -> the same shape, [-1, 1], nonlinear.

    Pixels in bytes, 255 (x + 1) / 2 - 128, converted to YCbCr if there are three channels (no chroma subsampling), in 8 x 8 blocks
    (sides that are no multiple of 8 are continued by their last pixels), orthonormal DCT, divided by the tables of ITU-T T.81
    Annex K scaled by quality, rounded, and everything back. Bytes are neither rounded nor clipped; coefficients within 1e-3
    below a tie round up.

    The derivative of A is zero almost everywhere, so `straight_through`: A_vjp is that of the surrogate in which rounding is left
    out, which is the identity. A_vjp(x, v) = v is therefore NOT the derivative of A (Bengio et al., arXiv:1308.3432).

    Raises ValueError for a quality that is not an integer from 1 to 100, or for other than 1 or 3 channels.
    """

    straight_through = True
    takes_light = False

    def __init__(self, image_shape: Sequence[int], quality: int = 10) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"quality must be an integer from 1 to 100, got {quality!r}")
        if channels not in (1, 3):
            raise ValueError(f"JPEG holds 1 or 3 channels, got image_shape {tuple(image_shape)}")
        super().__init__(image_shape, image_shape)
        self.quality = quality
        luminance, chrominance = (quantisation_table(base, quality) for base in (_LUMINANCE, _CHROMINANCE))
        tables = torch.stack([luminance] + [chrominance] * (channels - 1))
        colours = torch.tensor(_YCBCR, dtype=torch.float64) if channels == 3 else torch.ones(1, 1, dtype=torch.float64)
        self.register_buffer("tables", tables[:, None, None])
        self.register_buffer("colours", colours)
        self.register_buffer("uncolours", torch.linalg.inv(colours))
        self.register_buffer("cosines", cosine_matrix(8))
        self._pad = (0, -width % 8, 0, -height % 8)

    def coefficients(self, x: Tensor) -> Tensor:
        """The numbers that are rounded, (B, C, rows of blocks, columns of blocks, 8, 8)."""
        dct = self._as("cosines", x)
        padded = torch.nn.functional.pad(127.5 * x - 0.5, self._pad, mode="replicate")
        with torch.autocast(x.device.type, enabled=False):
            planes = torch.einsum("kc,bchw->bkhw", self._as("colours", x), padded)
            blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
            return dct @ blocks @ dct.mT / self._as("tables", x)

    def decode(self, c: Tensor) -> Tensor:
        """The image (B, C, H, W) of coefficients in units of the tables, the inverse of `coefficients`."""
        dct = self._as("cosines", c)
        with torch.autocast(c.device.type, enabled=False):
            planes = (dct.mT @ (c * self._as("tables", c)) @ dct).transpose(3, 4).flatten(4, 5).flatten(2, 3)
            padded = torch.einsum("kc,bchw->bkhw", self._as("uncolours", c), planes)
        height, width = self.image_shape[1:]
        return (padded[..., :height, :width] + 0.5) / 127.5

    def _forward(self, x: Tensor) -> Tensor:
        c = self.coefficients(x)
        # The bracket is exactly zero, and carries the gradient.
        return self.decode(torch.floor(c + 0.5 + _TIE).detach() + (c - c.detach()))

    def surrogate(self, x: Tensor) -> Tensor:
        """A without the rounding, whose derivative A_vjp is."""
        self._expect(x, self.image_shape, "x")
        return self.decode(self.coefficients(x))
