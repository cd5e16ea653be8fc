"""Checksums of the files that a configuration names and that decide a result: masks, kernels, coil maps, operators in files.

The input of an item and the weights of a prior have checksums of their own.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from operators.core.trust import code_is_refused

_SECTIONS = ("operator", "noise", "schedule", "sampler", "data")
_INPUTS = ("data.root", "data.measurement")
# Settings that may be a file's name without a suffix.
_FILES = ("mask", "kernel", "coil_maps", "places", "A")
_PER_IMAGE = (".png", ".npy")

_held: dict[Path, tuple[tuple[int, int, int], str]] = {}


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_once(path: Path) -> str:
    """As `sha256_of`; read again only if time, size or place on the disk is another than before."""
    found = path.stat()
    stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
    known = _held.get(path.absolute())
    if known is None or known[0] != stamp:
        known = _held[path.absolute()] = (stamp, sha256_of(path))
    return known[1]


def digests(sections: Mapping[str, Any], id: str | None = None) -> dict[str, str]:
    """sha256 by key (such as operator.mask, or operator.parts.0.kernel) of the files that components name.

    With an ``id``, also those of its own files in folders that hold one for each id. Files that are not there are left out, and
    where code is refused (`operators.core.trust`), those with code.
    """
    found = {}
    for key, path in _paths(sections):
        if id is not None and path.is_dir():
            path = next((file for file in (path / f"{id}{suffix}" for suffix in _PER_IMAGE) if file.is_file()), path)
        if path.is_file():
            found[key] = _sha256_once(path)
    return found


def path_of(sections: Mapping[str, Any], key: str) -> Path | None:
    """The file or folder behind a key of `digests`."""
    return dict(_paths(sections)).get(key)


def _paths(sections: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    for group in _SECTIONS:
        if group in sections:
            yield from _walk(group, sections[group].values)


def _walk(key: str, value: Any) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _walk(f"{key}.{name}", member)
    elif isinstance(value, (list, tuple)):
        for place, member in enumerate(value):
            yield from _walk(f"{key}.{place}", member)
    elif isinstance(value, (str, Path)) and key not in _INPUTS:
        path = _code(str(value)) if key.endswith(".target") else _path(key, str(value))
        if path is not None:
            yield key, path


def _path(key: str, text: str) -> Path | None:
    """The path that a text is, if it is one of something there."""
    if not (set(text) & set("./\\~") or key.rpartition(".")[2] in _FILES):
        return None
    path = Path(text).expanduser()
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # too long for a name, or holds NUL
        return None


def _code(target: str) -> Path | None:
    """The file of "path/to/file.py:attribute" or "package.module:attribute"."""
    place = target.rpartition(":")[0]
    if code_is_refused() or not place:
        return None
    if place.endswith(".py"):
        return Path(place).expanduser()
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None
