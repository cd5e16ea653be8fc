"""Stored measurements as a data section."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from invsolve.data.items import Array, Item, find_files, nameable, refusing
from invsolve.errors import ConfigError
from invsolve.ids import refuse_alike, usable
from operators.core.files import (
    Unreadable,
    load_npy,
    load_npz,
    load_tensor,
    names_in,
    native,
    printable,
    tensor_numbers,
)

_MEASUREMENTS = (".npz", ".npy", ".pt")


@dataclass(frozen=True)
class Measurement:
    """Stored measurements y without a truth: .npz with an array `y` (and perhaps an `id`), .npy or .pt.

    Args:
        measurement: a file, a folder (its files of these kinds, by name) or a glob; other arrays in an .npz are not read.
        image_shape: [C, H, W] of the unknown image; may be left out where y has that shape itself.
        id: what to call the result of a single file; by default the file's own `id`, else its name without the suffix.
    """

    measurement: str
    image_shape: tuple[int, int, int] | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.image_shape is not None and min(self.image_shape) < 1:
            raise ConfigError(f"data.image_shape = {list(self.image_shape)}: must be positive")

    def items(self) -> list[Item]:
        """One item for each file. Raises ConfigError for a missing file, and for a single one that cannot be read.

        Of a folder or glob, files that cannot be read are items with a `problem`, and y is read when it is needed.
        """
        path = Path(self.measurement).expanduser()
        if os.path.isfile(path) or not (os.path.isdir(path) or any(c in self.measurement for c in "*?[")):
            if not os.path.isfile(path):
                raise ConfigError(f"data.measurement = {printable(self.measurement)}: no such file")
            _read_measurement(path)
            item = self._item(path, self.id)
            if not item.problem:
                usable(item.id, "data.id")
            return [item]
        if self.id is not None:
            raise ConfigError(f"data.id = {self.id!r}: names one result, but data.measurement = {self.measurement} may be many files")
        items = [self._item(file) for file in find_files(self.measurement, _MEASUREMENTS, "data.measurement")]
        refuse_alike([(item.id, item.path) for item in items], f"data.measurement = {self.measurement}", "rename one")
        return items

    def _item(self, path: Path, id: str | None = None) -> Item:
        item = nameable(Item(path.stem, path, self.image_shape, True, partial(_read_measurement, path)))
        if item.problem:
            return item
        try:
            return replace(item, id=usable(id, "data.id") if id else _stored_id(path) or path.stem)
        except ConfigError as error:
            if id is not None:
                raise
            return replace(item, problem=str(error))


def _stored_id(path: Path) -> str | None:
    """The `id` in an .npz, without reading its other arrays. Raises ConfigError."""
    with refusing():
        held = load_npz(path, ("id",)).get("id") if path.suffix == ".npz" else None
        if held is None:
            return None
        if held.size != 1 or held.dtype.kind not in "Uiu":
            raise Unreadable(f"{path}: its `id` is an array {held.shape} of {held.dtype}; one text is needed")
        return printable(str(held.reshape(())))


def _read_measurement(path: Path) -> Array:
    """y, float32 or complex64. Raises ConfigError."""
    with refusing():
        if path.suffix == ".npz":
            stored = load_npz(path, ("y",))
            if "y" not in stored:
                raise ConfigError(f"{path}: no array `y`; it holds: {', '.join(names_in(path)) or 'nothing'}")
            return native(stored["y"], f"{path}: y")
        if path.suffix == ".npy":
            return native(load_npy(path), f"{path}: y")
        if path.suffix == ".pt":
            return native(tensor_numbers(load_tensor(path)), f"{path}: y")
    raise ConfigError(f"data.measurement = {path}: expected a file ending in {', '.join(_MEASUREMENTS)}")
