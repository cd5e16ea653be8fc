"""The output folder of a run, written so that a run killed at any moment continues where it was.

    config.yaml               the resolved configuration; `invsolve run FOLDER/config.yaml` is the same run
    manifest.json             versions, device, seed, sha256 of the weights, and per id: input, time, network calls, peak memory
    metrics.csv               id, sample, metric, value (sample is an index, `mean` for the posterior mean, or `chains`)
    arrays/<id>.npz           y, x (where known), samples (n, C, H, W) in [-1, 1], mean, std
    records/<id>.json         what manifest.json and metrics.csv hold of one id and the residuals under way, or why it failed
    images/<id>/panel.png     what a person looks at first; also sample_<k>.png, and trajectory.gif on request
    report.html               all of it on one page, from `invsolve eval` and `invsolve report`

Where the operator cannot tell an image from its mirror or negative (phase retrieval), `samples` are as they were drawn, while
mean, std, pictures and the PSNR and SSIM of metrics.csv are of samples aligned with `Operator.align`.

Every file is written beside its place and then moved there, and the record of an id last: it is finished if it has a record and
arrays. Several processes may write to one folder, since no two ids share a file; manifest.json and metrics.csv are gathered from
the records, now and then and at the end.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from invsolve.config import Config, difference, identity, show
from invsolve.schema import ConfigError


class Row(NamedTuple):
    """One line of metrics.csv."""

    id: str
    sample: str
    metric: str
    value: float


def _machine() -> str:
    """A short name of what process numbers are counted in: this boot of this machine, and the container."""
    try:
        parts = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        parts = socket.gethostname()
    return hashlib.sha256(parts.encode()).hexdigest()[:8]


_MACHINE = _machine()
_ORPHAN_AGE = 86400.0  # seconds after which what is half-written belongs to no process, also of another machine
_GATHER_EVERY = 30.0  # seconds


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{_MACHINE}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """The folder ``config.settings.out``: looked at now, created by `begin`.

    Raises ConfigError where it holds a run with another configuration, or files that are no run.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(str(config.settings.out)).expanduser()
        data = replace(config.sections["data"], values={**config.sections["data"].values, "shard": None})
        whole = replace(config, sections={**config.sections, "data": data})
        self._text, self._identity, self._weights = show(whole), identity(config), ""
        self._facts: dict[str, Any] = {}
        self._begun_now, self._agreed, self._gathered, self._pause = False, False, time.monotonic(), _GATHER_EVERY
        self._known: set[str] = set()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out = {self.path}: is a file; choose another folder with out=...")
        if (self.path / "config.yaml").is_file():
            _refuse_another(self.path, self._text)
            self._facts = {key: value for key, value in read_manifest(self.path).items() if key not in ("images", "failed", "finished")}
        elif self.path.is_dir():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".") and entry.name != "logs")
            # Another process may have begun the folder between the two looks; `begin` compares with it.
            if strangers and not (self.path / "config.yaml").is_file():
                raise ConfigError(
                    f"out = {self.path}: holds {strangers[0]} but no config.yaml, so it is no run; choose another with out=..."
                )

    def begin(self, weights: str | None = None, **facts: Any) -> None:
        """Creates the folder with its config.yaml, unless that is there; ``facts`` are about the whole run.

        Raises ConfigError if another process has begun another configuration here meanwhile, and if ids were finished with other
        ``weights`` (a checksum) of the prior.
        """
        self._weights = weights or ""
        others = {record["weights"] for record in self._records() if "rows" in record} - {self._weights}
        if others:
            raise ConfigError(f"out = {self.path}: its results came from other weights of the prior; choose another folder with out=...")
        self._claim()
        _remove_orphans(self.path)
        self._facts.update(facts, weights_sha256=weights)

    def _claim(self) -> None:
        """Writes config.yaml where there is none; of several processes one wins, and the others must agree with it."""
        if (self.path / "config.yaml").is_file():
            if not self._agreed:
                # It may have come since this object looked at the folder.
                _refuse_another(self.path, self._text)
                self._agreed = True
            return
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".config.{_MACHINE}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part.yaml"
        try:
            temporary.write_text(self._text, encoding="utf-8")
            try:
                os.link(temporary, self.path / "config.yaml")
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                with (self.path / "config.yaml").open("x", encoding="utf-8") as file:  # a file system without links
                    file.write(self._text)
            self._begun_now = self._agreed = True
        except FileExistsError:
            _refuse_another(self.path, self._text)
        finally:
            temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Removes what `begin` wrote in this process, and the records of failures, if nothing was finished or saved half-way since.

        Otherwise a configuration that turned out to be impossible would bar the folder to the corrected one.
        """
        if self._begun_now and not (self.path / "arrays").exists() and not any(self.path.glob("partial/*")):
            for name in ("config.yaml", "manifest.json", "metrics.csv"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("partial", "records", "logs", "images"):
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def array_file(self, id: str) -> Path:
        """Where the arrays of an id stand."""
        return self.path / "arrays" / f"{id}.npz"

    def record_file(self, id: str) -> Path:
        """Where the record of an id stands."""
        return self.path / "records" / f"{id}.json"

    def image_folder(self, id: str) -> Path:
        """Where the pictures of an id stand."""
        return self.path / "images" / id

    def is_finished(self, id: str) -> bool:
        """Whether the results of an id are complete, whichever process wrote them."""
        if id not in self._known and self._complete(self.record(id)):
            self._known.add(id)
        return id in self._known

    def _complete(self, record: Mapping[str, Any] | None) -> bool:
        """Whether a record is of a result, and its arrays are there in full (a machine that stopped may have kept half of a file)."""
        return record is not None and _is_whole(self.array_file(record["id"]), record)

    def finished(self, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` whose results are complete."""
        return [id for id in ids if self.is_finished(id)]

    def record(self, id: str) -> dict[str, Any] | None:
        """What is known of an id: `rows` and `facts`, or `failed`; None where there is nothing, or half a file.

        Raises ConfigError for a record of another configuration.
        """
        try:
            held = json.loads(self.record_file(id).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        if held.get("config") != self._identity:
            name = self.record_file(id).name
            raise ConfigError(f"out = {self.path}: {name} is of another configuration; choose another folder with out=...")
        return dict(held)

    def failures(self) -> dict[str, str]:
        """The ids that could not be sampled or written, with the reason."""
        return {record["id"]: record["failed"] for record in self._records() if "failed" in record}

    def rows(self) -> list[Row]:
        """All rows of metrics.csv, by id."""
        return [row for record in self._records() for row in _rows_of(record)]

    def fact(self, id: str, key: str) -> Any:
        """What the record of an id says, or None."""
        return ((self.record(id) or {}).get("facts") or {}).get(key)

    def fail(self, id: str, message: str, unwritten: bool = False) -> None:
        """Records that an id could not be sampled (or, ``unwritten``, that it was and found no room), unless it is finished.

        A full disk may keep this from being recorded.
        """
        if not self.is_finished(id):
            try:
                self._write_record(id, {"failed": message, **({"unwritten": True} if unwritten else {})})
            except OSError as error:
                if error.errno not in FULL:
                    raise

    def finish(
        self, id: str, arrays: Mapping[str, NDArray[Any]], rows: Sequence[Row], facts: Mapping[str, Any], trace: Mapping[str, Any]
    ) -> None:
        """Writes arrays and record of one id, whose pictures are already there. Raises OSError, and then leaves no half of it.

        ``facts`` also go to the manifest, and ``trace``, what is known of the way to the result, stays in the record.
        """
        self._claim()
        with replacing(self.array_file(id)) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        try:
            written = {"rows": [[*row[1:3], f"{row.value:.6g}"] for row in rows], "facts": dict(facts), "trace": dict(trace)}
            self._write_record(id, {**written, "bytes": self.array_file(id).stat().st_size})
        except OSError:
            if not self.is_finished(id):
                self.array_file(id).unlink(missing_ok=True)
            raise
        self._known.add(id)
        if time.monotonic() - self._gathered > self._pause:
            self.gather()

    def gather(self) -> None:
        """Writes metrics.csv and manifest.json from all records, and again if another process has added one meanwhile.

        On a full disk they stay as they were: the ids that found no room have been reported, and the next call gathers again.
        """
        if not (self.path / "config.yaml").is_file():
            return
        try:
            self._gather()
        except OSError as error:
            if error.errno not in FULL:
                raise

    def _gather(self) -> None:
        start, before = time.monotonic(), None
        while (now := self._listing()) != before:
            before = now
            records = list(self._records())
            table = io.StringIO(newline="")
            writer = csv.writer(table)
            writer.writerow(Row._fields)
            writer.writerows([*row[:3], f"{row.value:.6g}"] for record in records for row in _rows_of(record))
            finished = {record["id"]: record["facts"] for record in records if "rows" in record}
            failed = {record["id"]: record["failed"] for record in records if "failed" in record}
            manifest = {**self._facts, "images": finished, "failed": failed, "finished": list(finished)}
            _write_changed(self.path / "metrics.csv", table.getvalue())
            _write_changed(self.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        self._gathered = time.monotonic()
        self._pause = max(_GATHER_EVERY, 50 * (self._gathered - start))

    def _write_record(self, id: str, content: dict[str, Any]) -> None:
        with replacing(self.record_file(id)) as temporary:
            held = {"id": id, "config": self._identity, "weights": self._weights, **content}
            temporary.write_text(json.dumps(held) + "\n", encoding="utf-8")

    def _listing(self) -> list[tuple[str, int, int]]:
        """Name, time and size of every record, sorted by name."""
        folder = self.path / "records"
        if not folder.is_dir():
            return []
        entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".json") and not entry.name.endswith(".part.json")]
        return sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries)

    def _records(self) -> Iterator[dict[str, Any]]:
        """The records by id; those of finished ids only where the arrays are there too."""
        for name, _, _ in self._listing():
            held = self.record(name.removesuffix(".json"))
            if held is not None and ("failed" in held or self._complete(held)):
                yield held


def _is_whole(file: Path, record: Mapping[str, Any]) -> bool:
    """Whether an array file is the one that the record of a result tells of."""
    return "rows" in record and file.is_file() and file.stat().st_size == record["bytes"]


def finished_arrays(run: Path) -> list[Path]:
    """The array files of the finished ids of a run folder, by name."""
    found = []
    for file in sorted((run / "arrays").glob("*.npz")):
        try:
            record = json.loads((run / "records" / f"{file.stem}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            continue  # half-written, or of a process that died before it was finished
        if _is_whole(file, record):
            found.append(file)
    return found


# What the system says when a disk, or the share of it that one may use, is full.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _rows_of(record: Mapping[str, Any]) -> list[Row]:
    return [Row(record["id"], sample, metric, float(value)) for sample, metric, value in record.get("rows", [])]


def _write_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode())


def _remove_orphans(path: Path) -> None:
    """Deletes what processes that are no more left half-written."""
    for orphan in path.rglob(".*.part.*"):
        machine, pid = orphan.name.split(".")[-5:-3]
        dead = machine == _MACHINE and Path("/proc/self").exists() and not Path(f"/proc/{pid}").exists()
        try:
            if dead or time.time() - orphan.stat().st_mtime > _ORPHAN_AGE:
                orphan.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # its own process has just moved it to its place


def mean_of(rows: Iterable[Row], metric: str, of_mean: bool) -> float | None:
    """The average of a metric over ids: of the posterior means, or of the single samples; None where there is none."""
    values = [row.value for row in rows if row.metric == metric and (row.sample == "mean") == of_mean]
    return float(np.mean(values)) if values else None


def _refuse_another(path: Path, text: str) -> None:
    try:
        stored = _read_yaml((path / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path / 'config.yaml'} cannot be read; choose another folder with out=...") from error
    # Both sides pass through YAML, so that what it cannot tell apart (a tuple and a list) does not count.
    differs = difference(stored, _read_yaml(text))
    if differs:
        key, old, new = differs
        raise ConfigError(f"out = {path}: holds a run with {key} = {old}, and this one has {new}; choose another folder with out=...")


def _read_yaml(text: str) -> dict[str, Any]:
    tree = OmegaConf.to_container(OmegaConf.create(text))
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def read_manifest(path: Path) -> dict[str, Any]:
    """manifest.json of a run folder, {} where there is none. Raises ConfigError where it is damaged."""
    file = path / "manifest.json"
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is damaged ({error}); choose another folder with out=...") from error
    return dict(stored)
