"""Ids of images as names of files: what may be one, on every system, and which two would be one file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from invsolve.errors import ConfigError

# The longest name of common file systems is 255 bytes; an id takes .json or .npz behind it.
LONGEST = 200
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE | re.DOTALL)
_TEMPORARY = re.compile(
    r"\.invsolve-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part(\.\w+)?|\..*\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.part\.\w+", re.DOTALL
)


def temporary(name: str) -> tuple[str, str] | None:
    """(machine, process number) of a half-written file by its name, also as earlier versions called them; None for any other."""
    found = _TEMPORARY.fullmatch(name)
    return None if found is None else (found[1] or found[4], found[2] or found[5])


def fault(id: str) -> str:
    """What keeps an id from being the name of a file, or nothing."""
    if id in ("", ".", ".."):
        return "is the name of no file"
    if bad := sorted(set(id) & set("/\\")):
        return f"holds {bad[0]}, which would lead to another folder"
    if any(ord(c) < 32 or ord(c) == 127 for c in id):
        return "holds a control character"
    if re.match("[A-Za-z]:", id):
        return "begins like a drive"
    if id[-1] in ". ":
        return "ends in a space or a dot, which some systems drop"
    if _DEVICE.fullmatch(id):
        return "is the name of a device on Windows"
    try:
        if len(os.fsencode(id)) > LONGEST:
            return f"has more than {LONGEST} bytes"
    except UnicodeEncodeError:
        return "holds characters that no file name holds here"
    return "is the name of a half-written file of invsolve" if temporary(f"{id}.json") else ""


def usable(id: str, what: str = "id") -> str:
    """The id, as it is. Raises ConfigError naming ``what`` unless it can be the name of a file on every system."""
    if wrong := fault(id):
        raise ConfigError(f"{what} = {_short(id)!r}: {wrong}; files and folders are named by it, so choose another name")
    return id


def file_name(id: str) -> str:
    """The id, or where it is none that `usable` takes, a name for what failed: a checksum, and what can be kept of it."""
    if not fault(id):
        return id
    kept = re.sub(r"[^\w.-]", "_", id, flags=re.ASCII)[:40].strip("._-")
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{digest}-{kept or 'unnamed'}"


def checked(items: Iterable[Any], where: str) -> list[Any]:
    """Items (`invsolve.data.items.Item`), those whose id cannot be a file's name with a `problem`, and so entries of what failed.

    Raises ConfigError naming both paths where two would be written to the same files.
    """
    found = []
    for item in items:
        wrong = "" if item.problem else fault(item.id)
        told = f"{item.path}: its id {_short(item.id)!r} {wrong}; files and folders are named by it, so rename it"
        found.append(dataclasses.replace(item, problem=told) if wrong else item)
    refuse_alike([(item.id, item.path) for item in found], where, "rename one")
    return found


def refuse_alike(named: Sequence[tuple[str, Path]], where: str, advice: str, folded: bool = False) -> None:
    """Raises ConfigError with the paths where two ids are one; ``folded``, also where only a file system may think so."""
    first: dict[str, tuple[str, Path]] = {}
    for id, path in named:
        key = unicodedata.normalize("NFC", id).casefold() if folded else id
        if key in first:
            other, there = first[key]
            text = repr(id) if other == id else f"{other!r} or {id!r}"
            raise ConfigError(f"{where}: the id {text} would stand for {there}, {path}; {advice}")
        first[key] = (id, path)


def _short(id: str) -> str:
    return id if len(id) <= 60 else f"{id[:57]}..."
