"""Crops of image files as a data section: several small images of each, for evaluations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from invsolve.data.images import Images
from invsolve.data.items import Array, Item, nameable, pick
from invsolve.errors import ConfigError
from invsolve.ids import refuse_alike


@dataclass(frozen=True)
class Crops:
    """Square crops of image files, evenly spaced along the diagonal, (3, size, size) in [-1, 1]; ids are <file>-0, <file>-1, ...

    Args:
        root: file, folder (its image files, by name) or glob; looked up in the working folder, then among the shipped data.
        indices: which of the crops, all crops of the first file first, such as "0-7"; null for all.
        size: side of a crop.
        each: crops of a file.
        reduce: what width and height are divided by before (Lanczos, in 8 bits, rounded down).
    """

    root: str
    indices: str | int | tuple[int, ...] | None = None
    size: int = 64
    each: int = 2
    reduce: int = 1

    def __post_init__(self) -> None:
        for key in ("size", "each", "reduce"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.{key} = {getattr(self, key)}: must be 1 or larger")
        pick(self.indices, None)

    def items(self) -> list[Item]:
        """The chosen crops in order. Of a file that cannot be read, or is too small, every crop is an item with a `problem`.

        Raises ConfigError for a missing folder, ambiguous names, and where all files are too small.
        """
        images = [self._checked(image) for image in Images(self.root).items()]
        if all(image.problem for image in images) and (small := [image for image in images if image.image_shape is not None]):
            raise ConfigError(small[0].problem)
        found = [nameable(crop) for image in images for crop in self._of(image)]
        refuse_alike([(crop.id, crop.path) for crop in found], f"data.root = {self.root}", "rename one")
        return [found[k] for k in pick(self.indices, len(found))]

    def _checked(self, image: Item) -> Item:
        """The image, with a `problem` if no crop fits into it."""
        if image.problem or image.image_shape is None:
            return image
        _, height, width = (side // self.reduce for side in image.image_shape)
        if min(height, width) >= self.size:
            return image
        at = f", reduced {self.reduce} times," if self.reduce > 1 else ""
        told = f"data.size = {self.size}: does not fit into {image.path.name}, which{at} is {height} x {width}"
        return replace(image, problem=told)

    def _of(self, image: Item) -> list[Item]:
        if image.problem:
            return [replace(image, id=f"{image.id}-{k}", image_shape=None) for k in range(self.each)]
        shape = (3, self.size, self.size)
        return [Item(f"{image.id}-{k}", image.path, shape, False, partial(self._crop, image, k), grey=image.grey) for k in range(self.each)]

    def _crop(self, image: Item, k: int) -> Array:
        planes = ((image.load() + 1) * 127.5).round().astype(np.uint8)
        reduced = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        if self.reduce > 1:
            reduced = reduced.resize((reduced.width // self.reduce, reduced.height // self.reduce), Image.Resampling.LANCZOS)
        pixels = np.asarray(reduced, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
        at = (k + 1) / (self.each + 1)
        i, j = (round(at * (side - self.size)) for side in pixels.shape[1:])
        return np.ascontiguousarray(pixels[:, i : i + self.size, j : j + self.size])
