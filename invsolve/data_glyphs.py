"""Glyphs that no shipped prior has seen, as a data section (see invsolve.glyphs)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from invsolve.data import Array, Item, pick
from invsolve.data_mri import Computed
from invsolve.glyphs import CLASSES, COMPOSITES, SIZE, composite, glyph
from invsolve.phantoms import EVALUATION_SEED
from invsolve.schema import ConfigError


@dataclass(frozen=True)
class Glyphs:
    """Rendered characters and symbols, (3, 64, 64) in [-1, 1], each with its class in the manifest (see invsolve.glyphs).

    Args:
        indices: which images, such as "0-7", "0,2" or 5.
        kind: "held_out", in faces and on backgrounds that are never trained on; "unseen", new renderings in the faces and on
            the backgrounds of training; "composite", glyphs on photographs, of which there are three.
        seed: the stream of renderings; the default is one that is never trained on.
    """

    indices: str | int | tuple[int, ...] = "0-7"
    kind: Literal["held_out", "unseen", "composite"] = "held_out"
    seed: int = EVALUATION_SEED

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"data.seed = {self.seed}: must be 0 or larger")
        pick(self.indices, self._count())

    def _count(self) -> int | None:
        return len(COMPOSITES) if self.kind == "composite" else None

    def items(self) -> list[Item]:
        """The chosen images; ids are glyph-0000, ... (unseen-0000, composite-0000). Each item's facts() hold its `class`."""
        return [self._item(index) for index in pick(self.indices, self._count())]

    def draw(self, index: int) -> tuple[Array, str]:
        """Image `index` of this kind, float32 (3, 64, 64), and the name of its class."""
        image, label = composite(index) if self.kind == "composite" else glyph(self.seed, index, self.kind == "held_out")
        return np.asarray(image.numpy()), CLASSES[label]

    def _item(self, index: int) -> Item:
        name = f"{'glyph' if self.kind == 'held_out' else self.kind}-{index:04d}"
        load, facts = partial(self._load, index), partial(self._facts, index)
        return Computed(name, Path(f"seed_{self.seed}") / name, (3, SIZE, SIZE), False, load, facts)

    def _load(self, index: int) -> Array:
        return self.draw(index)[0]

    def _facts(self, index: int) -> dict[str, Any]:
        return {"class": self.draw(index)[1]}
