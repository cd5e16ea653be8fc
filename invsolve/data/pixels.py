"""From opened image files and stored arrays to planes of values: what is taken, at which scale, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from operators.core.files import Unreadable, native

Array = NDArray[Any]


def truth_planes(array: Array, path: Path) -> Array:
    """A stored truth as (1 or 3, H, W), float32. Raises Unreadable unless it is an image in [-1, 1]."""
    found = native(array, f"{path}: x")
    found = found[None] if found.ndim == 2 else found
    if np.iscomplexobj(found) or found.ndim != 3 or found.shape[0] not in (1, 3) or not found.size:
        raise Unreadable(f"{path}: x is an array {array.shape} of {array.dtype}; a real one (H, W), (1, H, W) or (3, H, W) is needed")
    low, high = float(found.min()), float(found.max())
    if array.dtype.kind in "iu" or max(-low, high) > 1 + 1e-6:
        held = f"{array.dtype} values from {low:g} to {high:g}"
        raise Unreadable(f"{path}: x holds {held}; floating-point numbers in [-1, 1] are needed (bytes 0..255 as x / 127.5 - 1)")
    return found


def unit(stored: Array, scale: float) -> Array:
    """Stored values in [0, 1], float64; ``scale`` is that of white, or 0 for values in [-1, 1]."""
    return (stored.astype(np.float64) + 1) / 2 if scale == 0 else stored.astype(np.float64) / scale


def planes_of(image: Image.Image, path: Path, alpha: str) -> tuple[Array, float]:
    """An opened image as stored values (1 or 3, H, W), and that of white. Raises Unreadable."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return _eight_bit(image, path, alpha), 255
    grey = np.asarray(image)  # 16-bit grey; Pillow widens some of these files to 32 bits
    scale = 65535 if image.mode.startswith("I") else 1
    if not (grey.min() >= 0 and grey.max() <= scale):
        raise Unreadable(f"{path}: grey values from {grey.min():g} to {grey.max():g}; they must lie in [0, {scale}]")
    return grey[None], scale


def _eight_bit(image: Image.Image, path: Path, alpha: str) -> Array:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            if alpha == "refuse":
                raise Unreadable(f"{path} has transparent pixels; say what is behind them with data.alpha=white or data.alpha=black")
            rgba = Image.alpha_composite(Image.new("RGBA", image.size, alpha), rgba)
        image = rgba
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[None]
    if image.mode not in ("P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LA", "PA"):
        raise Unreadable(f"{path}: images of Pillow mode {image.mode} are not read; save it as an RGB or grey PNG")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def cover(plane: Array, h: int, w: int) -> Array:
    """(H, W) in [0, 1] scaled until it just covers h x w."""
    scale = max(h / plane.shape[0], w / plane.shape[1])
    size = (max(w, round(plane.shape[1] * scale)), max(h, round(plane.shape[0] * scale)))
    resized = Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    return np.clip(np.asarray(resized, dtype=np.float64), 0, 1)
