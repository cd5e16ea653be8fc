"""What a run reads: images to be degraded (and then recovered), or a stored measurement without a truth.

Both list their items without reading pixels, so that a mistake in the last file is found before the first is sampled.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from invsolve.ids import refuse_alike, usable
from invsolve.pixels import cover, planes_of, truth_planes, unit
from invsolve.resources import resource
from invsolve.schema import ConfigError, digits
from operators.files import (
    Unreadable,
    load_npy,
    load_npz,
    load_tensor,
    names_in,
    native,
    opened_image,
    orientation,
    printable,
    tensor_numbers,
    upright,
)

Array = NDArray[Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_MEASUREMENTS = (".npz", ".npy", ".pt")
_MOST_INDICES = 1_000_000
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@contextmanager
def refusing() -> Iterator[None]:
    """Makes what `operators.files` cannot read a ConfigError of the same words."""
    try:
        yield
    except Unreadable as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class Item:
    """One unit of work.

    ``image_shape`` is (C, H, W) of the unknown image, or None where the measurement's own shape has to serve. ``load()``
    gives the truth, float32 (C, H, W) in [-1, 1], or with ``measured`` the measurement y as it was stored. ``facts()`` is what
    else the manifest should say of the item. Two channels are the real and the imaginary part of a complex image.
    ``problem`` says why the item cannot be loaded, where that is known from the listing. ``grey`` items have three equal channels,
    of which a prior of one channel is given the first.
    """

    id: str
    path: Path
    image_shape: tuple[int, int, int] | None
    measured: bool
    load: Callable[[], Array]
    facts: Callable[[], dict[str, Any]] = dict
    problem: str = ""
    grey: bool = False

    @property
    def filed(self) -> bool:
        """Whether the digest is that of a file, or can be computed again; not so for what may be another at every reading."""
        return True

    def opened(self) -> Item:
        """The item with what only its content tells, read once; a file's own is known from the listing. Raises ConfigError."""
        return self

    def digest(self) -> str:
        """The sha256 of the input file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def read(self) -> tuple[Array, str]:
        """What `load` gives, and its `digest`. Raises ConfigError for a file that changes while it is read."""
        before = self.digest()
        array = np.asarray(self.load())
        if self.digest() != before:
            raise ConfigError(f"{self.path} changed while it was read; the same command reads it again")
        return array, before


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


def nameable(item: Item) -> Item:
    """The item; where the name of its file is not in UTF-8, with a `problem` and an id that can be printed."""
    if printable(item.id) == item.id:
        return item
    id = "".join(f"%{byte:02X}" if byte > 127 else chr(byte) for byte in os.fsencode(item.id))
    path = Path(printable(str(item.path)))
    return replace(item, id=id, path=path, problem=f"the name of the file {path.name!r} is not in UTF-8; rename it")


def check_truth(x: Array, where: str) -> None:
    """Raises ConfigError, with ``where`` in front, for a truth that does not hold numbers in [-1, 1]: bytes above all.

    A little beyond is no mistake: interpolation overshoots, and an MR image that is scaled by a percentile exceeds 1.
    """
    if x.dtype.kind not in "fc":
        what = "values 0 to 255" if x.dtype == np.uint8 else "no real numbers"
        raise ConfigError(f"{where} is of type {x.dtype}, {what}; a truth holds floating-point numbers in [-1, 1] (x / 127.5 - 1 of bytes)")
    largest = float(np.abs(x).max(initial=0))
    if largest > _TRUTH_LIMIT:
        raise ConfigError(f"{where} holds values up to {largest:g}; a truth lies in [-1, 1] (x / 127.5 - 1 of bytes 0 to 255)")


# Sixteenfold is no overshoot; an image in bytes 0 to 255 reaches it unless it is all but black.
_TRUTH_LIMIT = 16.0


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


def find_files(root: str, suffixes: Sequence[str] = SUFFIXES, key: str = "data.root") -> list[Path]:
    """The files behind a file name, folder or glob, sorted by name, and none that runs wrote of those that ** matches.

    Files whose names begin with a dot are left out of folders and globs. Links that lead nowhere, and the like, are among the files.
    Raises ConfigError where none has one of the suffixes.
    """
    shown = printable(root)
    try:
        return _found(root, suffixes, key)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{key} = {shown}: cannot be listed: {printable(' '.join(str(error).split()))}") from error


def _found(root: str, suffixes: Sequence[str], key: str) -> list[Path]:
    for pattern in (Path(root).expanduser(), resource(root)):
        if os.path.isfile(pattern):
            return [pattern]
        if os.path.isdir(pattern):
            found = list(pattern.iterdir())
        else:
            found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
            if "**" in root:
                found = _without_results(found, pattern)
        visible = [path for path in found if not path.name.startswith(".") and not os.path.isdir(path)]
        files = sorted(path for path in visible if path.suffix.lower() in suffixes)
        if files:
            return files
        if found:
            what = "images" if suffixes[0] == SUFFIXES[0] else "files"
            raise ConfigError(f"{key} = {printable(root)}: no {what} there; the suffixes known are {', '.join(suffixes)}")
    where = f"(looked in {printable(str(Path.cwd()))} and the shipped data)"
    raise ConfigError(f"{key} = {printable(root)}: no such file or folder, and no glob that matches {where}")


def _without_results(found: Sequence[Path], pattern: Path) -> list[Path]:
    """Paths that ** found, without what runs wrote in their folders below the part of the pattern that is no pattern."""
    fixed = next(place for place in pattern.parents if not glob.has_magic(str(place)))
    runs: dict[Path, bool] = {}

    def is_run(folder: Path) -> bool:
        if folder not in runs:
            runs[folder] = (folder / "config.yaml").is_file() and (folder / "records").is_dir()
        return runs[folder]

    return [path for path in found if not any(is_run(place) for place in path.parents if place != fixed and place.is_relative_to(fixed))]


def pick(indices: str | int | Sequence[int] | None, count: int | None, key: str = "data.indices") -> list[int]:
    """The indices chosen among ``count`` things; with ``count`` None any that are written out. Raises ConfigError naming ``key``."""
    if indices is None:
        return list(range(count or 0))
    ranges: list[range] = []
    parts = indices.split(",") if isinstance(indices, str) else [str(i) for i in ([indices] if isinstance(indices, int) else indices)]
    for part in parts:
        first, dash, last = part.strip().partition("-")
        low, high = digits(first), digits(last if dash else first)
        if low is None or high is None:
            raise ConfigError(f"{key} = {indices!r}: expected numbers and ranges such as 0-3 or 0,2")
        if count is not None and high >= count:
            raise ConfigError(f"{key} = {indices!r}: there are {count}, numbered 0 to {count - 1}")
        ranges.append(range(low, high + 1))
    # Counted before they are written out, for a range may be of more than the memory holds.
    if sum(map(len, ranges)) > _MOST_INDICES:
        raise ConfigError(f"{key} = {indices!r}: names more than {_MOST_INDICES}")
    picked = [index for part in ranges for index in part]
    if not picked or len(set(picked)) < len(picked):
        raise ConfigError(f"{key} = {indices!r}: must name each once, and at least one")
    return picked
