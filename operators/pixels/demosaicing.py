"""Demosaicing: every pixel of a sensor sees one colour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from operators.core.picture import as_picture
from operators.core.tensors import shape_of
from operators.pixels.colour import ChannelMix

_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")


class Demosaicing(ChannelMix):
    """The raw image of a Bayer sensor: (B, 3, H, W) -> (B, 1, H, W), each pixel one of R, G, B.

    `pattern` names the colours of the top left 2 x 2 pixels row by row: "RGGB" (Bayer, US patent 3971065), "BGGR", "GRBG" or
    "GBRG". Any H and W. Rows are orthonormal: A A^T = I, so prox and pseudo-inverse are closed form.

    Raises ValueError for another pattern or without three channels.
    """

    def __init__(self, image_shape: Sequence[int], pattern: str = "RGGB") -> None:
        channels, height, width = shape_of(image_shape, 3)
        if pattern not in _PATTERNS:
            raise ValueError(f"pattern must be one of {', '.join(_PATTERNS)}, got {pattern!r}")
        if channels != 3:
            raise ValueError(f"a Bayer pattern needs the 3 channels R, G, B, got image_shape {tuple(image_shape)}")
        tile = torch.tensor(["RGB".index(colour) for colour in pattern]).reshape(2, 2)
        seen = tile.repeat(-(-height // 2), -(-width // 2))[:height, :width]
        super().__init__(image_shape, (seen == torch.arange(3)[:, None, None]).double())
        self.pattern = pattern

    def view(self, y: Tensor) -> Tensor:
        """The raw image in the colours of its pixels, (B, 3, H, W), the other two mid-grey."""
        return as_picture(self._right(y))
