"""What a data section gives: items, and how files and indices are picked."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invsolve.config.schema import digits
from invsolve.errors import ConfigError
from invsolve.resources import resource
from operators.core.files import (
    Unreadable,
    printable,
)

Array = NDArray[Any]


SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


_MOST_INDICES = 1_000_000


@contextmanager
def refusing() -> Iterator[None]:
    """Makes what `operators.core.files` cannot read a ConfigError of the same words."""
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


class Computed(Item):
    """An item whose array is made here; its digest is that of the array, not of a file (which may hold many slices)."""

    def digest(self) -> str:
        """The sha256 of the truth."""
        return hashlib.sha256(self.load().tobytes()).hexdigest()

    def read(self) -> tuple[Array, str]:
        """The truth, made once, and its sha256."""
        array = self.load()
        return array, hashlib.sha256(array.tobytes()).hexdigest()


EVALUATION_SEED = 20_000
"""Phantoms of this seed are never trained on: every score on phantoms is measured on them."""
