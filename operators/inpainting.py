"""Inpainting: some pixels are not observed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from operators.base import shape_of
from operators.picture import as_picture
from operators.spectral import SpectralOperator
from operators.streams import generator


def _draw(low: int, high: int, rng: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def box_mask(height: int, width: int, size: int | Sequence[int] | None, margin: int, seed: int) -> Tensor:
    """Mask (H, W), float64, 0 in one box whose place is uniform among those at least `margin` pixels from the border.

    `size` is a side, a pair (h, w), or None for half of each side. Raises ValueError if the box does not fit.
    """
    if size is None:
        size = (max(height // 2, 1), max(width // 2, 1))
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or min(sides) < 1 or margin < 0:
        raise ValueError(f"a box needs a positive size (side or (h, w)) and a margin >= 0, got size={size!r}, margin={margin!r}")
    h, w = sides
    if h + 2 * margin > height or w + 2 * margin > width:
        raise ValueError(f"a box of {h}x{w} with margin {margin} does not fit an image of {height}x{width}")
    rng = generator(seed, "box mask")
    top, left = _draw(margin, height - margin - h, rng), _draw(margin, width - margin - w, rng)
    mask = torch.ones(height, width, dtype=torch.float64)
    mask[top : top + h, left : left + w] = 0
    return mask


def random_mask(height: int, width: int, fraction: float, seed: int) -> Tensor:
    """Mask (H, W), float64, with exactly floor(fraction H W) zeros at places uniform without replacement."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is the share of pixels removed and must lie in [0, 1), got {fraction!r}")
    # 0.29 * 100 is 28.999999999999996: the product of a decimal fraction is meant, not its binary rounding.
    removed = math.floor(fraction * height * width + 1e-9)
    mask = torch.ones(height * width, dtype=torch.float64)
    mask[torch.randperm(height * width, generator=generator(seed, "random mask"))[:removed]] = 0
    return mask.reshape(height, width)


def file_mask(mask: str | Path | Tensor, height: int, width: int) -> Tensor:
    """Mask (H, W), float64 0/1, from an image file, a .npy file or a tensor (H, W) or (1, H, W); nonzero means known.

    Raises ValueError if there is no such file or its size is not that of the image.
    """
    if isinstance(mask, Tensor):
        found, name = mask.detach().cpu(), "the mask tensor"
    else:
        path = Path(mask)
        if not path.is_file():
            raise ValueError(f"no mask file at {path}")
        name = str(path)
        if path.suffix == ".npy":
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            with Image.open(path) as picture:
                found = torch.from_numpy(np.array(picture.convert("L")))
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if tuple(found.shape) != (height, width):
        raise ValueError(f"{name} has size {tuple(found.shape)}, the image has {(height, width)}")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")
    return (found != 0).double()


class Inpainting(SpectralOperator):
    """Sets hidden pixels to zero, jointly in all channels: (B, C, H, W) -> (B, C, H, W), y = mask * x.

    kind="box": one hidden box of side `size` (int, or (h, w); default half the sides) at a random place `margin` pixels from
    the border; kind="random": exactly floor(fraction H W) random pixels removed; kind="file": `mask` from a PNG or .npy file
    (or a tensor), white or nonzero = known. Random masks are drawn once, here, from `seed`. Buffer `mask` (1, H, W), 1 = known.
    Measurements are full size with zeros at hidden pixels, which count neither in `measured` nor in the noise
    (DPS, Chung et al., arXiv:2209.14687, App. D adds noise there too).

    Raises ValueError for an unknown kind, options of another kind, a box that does not fit, a fraction outside [0, 1), a
    mask whose size is not (H, W), or a mask that hides every pixel.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        kind: str = "box",
        size: int | Sequence[int] | None = None,
        fraction: float = 0.7,
        margin: int = 0,
        mask: str | Path | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        _, height, width = shape_of(image_shape, 3)
        if kind not in ("box", "random", "file"):
            raise ValueError(f"kind must be 'box', 'random' or 'file', got {kind!r}")
        if kind != "box" and (size is not None or margin):
            raise ValueError(f"size and margin belong to kind='box', got size={size!r}, margin={margin!r} with kind={kind!r}")
        if (kind == "file") != (mask is not None):
            raise ValueError(f"mask and kind='file' go together, got mask={'None' if mask is None else 'given'}, kind={kind!r}")
        super().__init__(image_shape, image_shape)
        if kind == "box":
            known = box_mask(height, width, size, margin, seed)
        elif mask is None:
            known = random_mask(height, width, fraction, seed)
        else:
            known = file_mask(mask, height, width)
        if not bool(known.any()):
            raise ValueError("the mask hides every pixel: nothing would be measured")
        self.register_buffer("mask", known[None])
        self.kind = kind

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("mask", like)

    def restrict(self, y: Tensor) -> Tensor:
        """y (B, C, H, W) with hidden pixels set to zero."""
        return self._as("mask", y) * y

    @property
    def measured(self) -> int:
        """Number of known pixels times channels."""
        channels: int = self.image_shape[0]
        return channels * int(self.mask.count_nonzero())

    def view(self, y: Tensor) -> Tensor:
        """The known pixels clamped to [-1, 1], hidden ones mid-grey."""
        return as_picture(self.restrict(y))
