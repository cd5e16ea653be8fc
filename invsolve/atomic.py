"""Files that are whole or absent: written beside their place and then moved there."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invsolve import ids
from invsolve.errors import ConfigError


def _machine() -> str:
    """A short name of what process numbers are counted in: this boot of this machine, and the container."""
    try:
        parts = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        parts = socket.gethostname()
    return hashlib.sha256(parts.encode()).hexdigest()[:8]


_MACHINE = _machine()
_ORPHAN_AGE = 86400.0  # seconds after which what is half-written belongs to no process, also of another machine


class Created:
    """The files and folders that this process made; `remove` takes them away, and leaves whatever else there is."""

    def __init__(self) -> None:
        self.files: set[Path] = set()
        self._folders: list[Path] = []

    def folder(self, path: Path, below: Path | None = None) -> None:
        """Makes a folder and those above it; remembers the ones that were not there, from ``below`` (the folder itself) down."""
        for one in reversed([place for place in (path, *path.parents) if not place.is_dir()]):
            try:
                one.mkdir()
            except FileExistsError:
                continue
            if one.is_relative_to(below or path):
                self._folders.append(one)

    def remove(self) -> None:
        """Deletes the files, and those of the folders that are empty then."""
        for file in self.files:
            file.unlink(missing_ok=True)
        for folder in sorted(set(self._folders), key=lambda path: -len(path.parts)):
            try:
                folder.rmdir()
            except OSError:  # gone, or something of another's is in it
                continue
        self.files, self._folders = set(), []


def refuse_existing(path: Path, overwrite: bool = False) -> None:
    """Raises ConfigError where a file that a command was asked to write is there, unless ``overwrite``."""
    if not overwrite and os.path.lexists(path):
        raise ConfigError(f"{path}: exists; choose another name, or replace it with --overwrite")


def temporary_beside(path: Path) -> Path:
    """A name for what is to become ``path``, that no id is and that tells the process."""
    return path.with_name(f".invsolve-{_MACHINE}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part{path.suffix}")


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error.

    ``durable``: what was written is on the disk before it has its name, and the name when the block is left, whatever happens
    to the machine then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder stands where a file is to be written; move it away", str(path))
    temporary = temporary_beside(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # file systems that know no such request
            raise
    finally:
        os.close(number)


def remove_orphans(path: Path) -> None:
    """Deletes what processes that are no more left half-written."""
    for orphan in path.rglob(".*.part*"):
        owner = ids.temporary(orphan.name)
        if owner is None:
            continue
        dead = owner[0] == _MACHINE and Path("/proc/self").exists() and not Path(f"/proc/{owner[1]}").exists()
        try:
            if dead or time.time() - orphan.stat().st_mtime > _ORPHAN_AGE:
                orphan.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # its own process has just moved it to its place


# What the system says when a disk, or the share of it that one may use, is full.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
