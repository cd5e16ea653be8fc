"""The pictures of a report: small images as data URIs, within a limit of bytes for each image of the run."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from invsolve.pictures import panels
from invsolve.signals import magnitude

Array = NDArray[Any]

# One hundred images of these many characters leave room for the rest below 30 MB.
LIMIT = 280_000
SAMPLES, FRAMES = 8, 8
# Sides of large and small pictures and the quality, tried in turn until the limit is kept. Small images come first, without loss.
_LOSSLESS = 96
_LADDER = ((512, 192, 88), (384, 160, 85), (256, 128, 80), (192, 96, 75), (128, 80, 70), (96, 64, 60), (64, 48, 50))


@dataclass(frozen=True)
class Picture:
    """``uri`` holds the pixels, ``width`` and ``height`` are those of the array; ``is_map`` for one on the scale of colours."""

    name: str
    uri: str
    width: int
    height: int
    is_map: bool = False


@dataclass(frozen=True)
class Gallery:
    """The pictures of one image by what they are; ``top`` is the end of the colour scale of the maps.

    ``large`` are those to compare and the maps, ``before`` and ``after`` names among them.
    """

    large: list[Picture]
    samples: list[Picture]
    frames: list[Picture]
    before: Sequence[str]
    after: Sequence[str]
    top: float


@dataclass(frozen=True)
class Arrays:
    """What a gallery shows: (C, H, W) in [-1, 1], ``view`` the measurement; aligned samples (n, C, H, W); uint8 frames."""

    view: Array
    truth: Array | None
    samples: Array
    mean: Array
    std: Array
    frames: Sequence[tuple[str, Array]] = ()

    @property
    def has_mean(self) -> bool:
        """Whether the mean is more than the only sample."""
        return len(self.samples) > 1 or not np.array_equal(self.mean, self.samples[0])


def gallery(arrays: Arrays, limit: int = LIMIT) -> Gallery:
    """The gallery of an image at the best quality that takes no more than ``limit`` characters, or at the least there is."""
    h, w = arrays.mean.shape[1:]
    maps = {}
    if arrays.truth is not None:
        estimate = "mean" if arrays.has_mean else "sample"
        maps[f"|{estimate} \N{MINUS SIGN} truth|"] = magnitude(arrays.mean - arrays.truth)
    if arrays.has_mean and arrays.std.any():
        maps["posterior std"] = magnitude(arrays.std)
    top = panels.scale_of(list(maps.values()))
    large = {"measurement": panels.to_bytes(arrays.view)}
    large |= {} if arrays.truth is None else {"truth": panels.to_bytes(arrays.truth)}
    large |= {"posterior mean": panels.to_bytes(arrays.mean)} if arrays.has_mean else {}
    large |= {"sample 1": panels.to_bytes(arrays.samples[0])}
    drawn = {name: _coloured(content, top) for name, content in maps.items()}
    rest = [panels.to_bytes(one) for one in arrays.samples[1:SAMPLES]]
    # Sides that differ by a common factor (super-resolution) can lie on top of each other, a raster of numbers cannot.
    comparable = large["measurement"].shape[0] * w == large["measurement"].shape[1] * h
    before = [name for name in ("measurement", "truth") if name in large and (comparable or name != "measurement")]
    after = [name for name in ("posterior mean", "sample 1") if name in large]
    small_image = max(h, w) <= _LOSSLESS
    for big, small, quality in [*([(_LOSSLESS, _LOSSLESS, 0)] if small_image else []), *_LADDER]:
        found = Gallery(
            [encoded(name, pixels, big, quality) for name, pixels in large.items()]
            + [encoded(name, pixels, big, quality, True) for name, pixels in drawn.items()],
            [encoded(f"sample {k}", pixels, small, quality) for k, pixels in enumerate(rest, 2)],
            [encoded(name, pixels, small, quality or 80) for name, pixels in arrays.frames],
            before, after, top,
        )  # fmt: skip
        if sum(len(one.uri) for one in (*found.large, *found.samples, *found.frames)) <= limit:
            break
    return found


def encoded(name: str, pixels: Array, side: int, quality: int, is_map: bool = False) -> Picture:
    """uint8 pixels (H, W) or (H, W, 3) as WebP, made no larger than ``side``; quality 0 is without loss."""
    h, w = pixels.shape[:2]
    picture = Image.fromarray(pixels).convert("RGB")
    if max(h, w) > side:
        factor = side / max(h, w)
        picture = picture.resize((max(1, round(w * factor)), max(1, round(h * factor))), Image.Resampling.BOX)
    file = io.BytesIO()
    how: dict[str, Any] = {"quality": quality, "method": 2} if quality else {"lossless": True, "method": 0}
    picture.save(file, "WEBP", **how)
    return Picture(name, f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", w, h, is_map)


def frames_of(path: Path | None, steps: Sequence[int]) -> list[tuple[str, Array]]:
    """At most `FRAMES` evenly spaced frames of a trajectory.gif with a name each; none where there is no such file, or a damaged one.

    ``steps`` are the indices of the steps of all frames; where they are as many, the names tell them.
    """
    if path is None or not path.is_file():
        return []
    try:
        with Image.open(path) as opened:
            count = getattr(opened, "n_frames", 1)
            chosen = sorted({round(place) for place in np.linspace(0, count - 1, min(FRAMES, count))})
            held = {k: np.asarray(frame.convert("RGB")) for k, frame in enumerate(ImageSequence.Iterator(opened)) if k in chosen}
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError):
        return []
    # A GIF takes equal frames as one, so that the steps are known only if none were.
    return [(f"step {steps[k] + 1}" if len(steps) == count else f"frame {k + 1}", frame) for k, frame in held.items()]


def colour_stops(count: int = 9) -> list[str]:
    """The scale of the maps as CSS colours, from 0 to its end."""
    return [str(to_hex(colormaps["inferno"](k / (count - 1)))) for k in range(count)]


def _coloured(content: Array, top: float) -> Array:
    drawn: Array = colormaps["inferno"](np.clip(content / top, 0, 1), bytes=True)[..., :3]
    return np.ascontiguousarray(drawn)
