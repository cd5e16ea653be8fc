"""What a run reads: images to be degraded (and then recovered), or a stored measurement without a truth.

Both list their items without reading pixels, so that a mistake in the last file is found before the first is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from invsolve.data.items import SUFFIXES, Array, Item, find_files, nameable, pick, refusing
from invsolve.data.pixels import cover, planes_of, truth_planes, unit
from invsolve.errors import ConfigError
from invsolve.ids import refuse_alike
from operators.core.files import (
    load_npy,
    opened_image,
    orientation,
    upright,
)

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Images:
    """Image files: one file, a folder or a glob; they are degraded by the operator, and are the truth.

    Args:
        root: file, folder (its image files, by name) or glob; looked up in the working folder, then among the shipped data.
        indices: which of the files, such as "0-3", "0,2" or [0, 2] (from 0, by name); null for all.
        size: side, or [height, width], of the image to take; null for the whole image.
        fit: "resize" scales the image until it just covers ``size`` (Lanczos) and takes the centre; "crop" takes the
            centre at full resolution.
        origin: [row, column] of the upper left corner of a crop, in place of the centre.
        alpha: what to do with transparency: refuse it, or lay the image on white or black.
        channels: 1 reads colour as grey (0.299 R + 0.587 G + 0.114 B), 3 grey as three equal channels; null leaves colour as it is
            and gives grey files the one or three channels that the prior has.

    8 bits are divided by 255, 16-bit grey by 65535, and floating-point files must lie in [0, 1]. Refused are 16-bit colour, which
    Pillow would read at 8 bits, and files of several pages. A .npy file holds a truth (H, W), (1, H, W) or (3, H, W) in [-1, 1];
    in a folder or glob they are taken where there are no image files. Hidden files, whose names begin with a dot, are left out.
    """

    root: str
    indices: str | int | tuple[int, ...] | None = None
    size: int | tuple[int, int] | None = None
    fit: Literal["resize", "crop"] = "resize"
    origin: tuple[int, int] | None = None
    alpha: Literal["refuse", "white", "black"] = "refuse"
    channels: Literal[1, 3] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and min(self._sides()) < 1:
            raise ConfigError(f"data.size = {self.size}: must be positive")
        if self.origin is not None and (self.fit != "crop" or self.size is None):
            raise ConfigError(f"data.origin = {list(self.origin)}: needs data.fit=crop and a data.size")
        pick(self.indices, None)

    def _sides(self) -> tuple[int, int]:
        assert self.size is not None
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def items(self) -> list[Item]:
        """The chosen files in order; the id of an image is its file name without the suffix.

        A file that cannot be read is an item with a `problem`. Raises ConfigError for a missing folder and ambiguous ids.
        """
        files = find_files(self.root, (*SUFFIXES, ".npy"))
        files = [path for path in files if path.suffix.lower() != ".npy"] or files
        chosen = [files[i] for i in pick(self.indices, len(files))]
        refuse_alike([(path.stem, path) for path in chosen], f"data.root = {self.root}", "rename one, or use data.indices")
        return [nameable(self._item(path)) for path in chosen]

    def _item(self, path: Path) -> Item:
        load = partial(self.read, path)
        try:
            shape, grey = self._shape(path)
        except ConfigError as error:
            return Item(path.stem, path, None, False, load, problem=str(error))
        return Item(path.stem, path, shape, False, load, grey=grey and self.channels is None)

    def _shape(self, path: Path) -> tuple[tuple[int, int, int], bool]:
        """(C, H, W) of the image to be loaded, and whether its file is grey, from the file's header."""
        with refusing():
            if path.suffix.lower() == ".npy":
                found = truth_planes(load_npy(path), path)
                channels, height, width = found.shape
            else:
                with opened_image(path) as opened:
                    width, height = opened.size if orientation(opened) < 5 else opened.size[::-1]  # those lie on their side
                    channels = 1 if opened.mode in ("1", "L", "LA", "F") or opened.mode.startswith("I") else 3
        shown = self.channels or 3
        if self.size is None:
            return (shown, height, width), channels == 1
        h, w = self._sides()
        top, left = self.origin or (0, 0)
        if self.fit == "crop" and (min(top, left) < 0 or top + h > height or left + w > width):
            at = f" at origin [{top}, {left}]" if self.origin else ""
            raise ConfigError(f"data.size = {self.size}: a {h} x {w} crop{at} does not fit into {path.name}, which is {height} x {width}")
        return (shown, h, w), channels == 1

    def read(self, path: Path) -> Array:
        """The image as float32 (C, H, W) in [-1, 1], C = 3 unless ``channels`` is 1. Raises ConfigError."""
        with refusing():
            if path.suffix.lower() == ".npy":
                stored, scale = truth_planes(load_npy(path), path), 0.0
            else:
                with opened_image(path) as opened:
                    stored, scale = planes_of(upright(opened), path, self.alpha)
            if self.size is not None:
                h, w = self._sides()
                # Planes are scaled one by one, so that a large scan takes little more memory than its pixels.
                if self.fit == "resize":
                    stored, scale = np.stack([cover(unit(plane, scale), h, w) for plane in stored]), 1.0
                top, left = self.origin or ((stored.shape[1] - h) // 2, (stored.shape[2] - w) // 2)
                stored = stored[:, top : top + h, left : left + w]
            if self.channels == 1 and len(stored) == 3:
                stored, scale = np.tensordot(_LUMA, np.stack([unit(plane, scale) for plane in stored]), 1)[None], 1.0
            signal = stored if scale == 0 else 2 * unit(stored, scale) - 1
        found = np.ascontiguousarray(signal, dtype=np.float32)
        return found if len(found) == (self.channels or 3) else np.repeat(found, 3, axis=0)
