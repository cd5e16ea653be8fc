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
the arrays whose sha256 that holds. Several processes may write to one folder, since no two ids share a file; manifest.json and
metrics.csv are gathered from the records, now and then and at the end. Nothing is deleted that this process did not make.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invsolve import ids
from invsolve.atomic import FULL, Created, remove_orphans, replacing, sync, temporary_beside
from invsolve.config.identity import identity, show
from invsolve.config.model import Config
from invsolve.errors import ConfigError
from invsolve.runs.digests import digests, sha256_of
from invsolve.runs.records import Row, _rows_of, read_manifest
from invsolve.runs.stored import is_whole, read_record, refuse_another, refuse_changed

_GATHER_EVERY = 30.0  # seconds
_Stamps = tuple[tuple[int, int, int], ...]


class RunFolder:
    """The folder ``config.settings.out``: looked at now, created by `begin`.

    Raises ConfigError where it holds a run with another configuration, or files that are no run.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(str(config.settings.out)).expanduser()
        data = replace(config.sections["data"], values={**config.sections["data"].values, "shard": None})
        whole = replace(config, sections={**config.sections, "data": data})
        self._config, self._text, self._identity, self._weights = config, show(whole), identity(config), ""
        self._shard = config.sections["data"].values.get("shard") is not None
        self._files, self._created = digests(config.sections), Created()
        self._facts: dict[str, Any] = {}
        self._begun_now, self._agreed, self._gathered, self._pause = False, False, time.monotonic(), _GATHER_EVERY
        self._known: dict[str, _Stamps] = {}
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out = {self.path}: is a file; choose another folder with out=...")
        above = next(place for place in (self.path, *self.path.absolute().parents) if os.path.lexists(place))
        if not above.is_dir():
            raise ConfigError(f"out = {self.path}: {above} is no folder, or a link that leads nowhere; choose another folder with out=...")
        if (self.path / "config.yaml").is_file():
            refuse_another(self.path, self._text)
            self._facts = {key: value for key, value in read_manifest(self.path).items() if key not in ("images", "failed", "finished")}
        elif self.path.is_dir():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".") and entry.name != "logs")
            # Another process may have begun the folder between the two looks; `begin` compares with it.
            if strangers and not (self.path / "config.yaml").is_file() and not any(self._records()):
                raise ConfigError(
                    f"out = {self.path}: holds {strangers[0]} but no config.yaml, so it is no run; choose another with out=..."
                )

    def begin(self, weights: str | None = None, **facts: Any) -> None:
        """Creates the folder with its config.yaml, unless that is there; ``facts`` are about the whole run.

        Raises ConfigError if another process has begun another configuration here meanwhile, and if ids were finished with other
        ``weights`` (a checksum) of the prior, or with other contents of a file that the configuration names.
        """
        self._weights = weights or ""
        finished = [record for record in self._records() if "rows" in record]
        if {record.get("weights") for record in finished} - {self._weights}:
            raise ConfigError(f"out = {self.path}: its results came from other weights of the prior; choose another folder with out=...")
        for record in finished:
            refuse_changed(record, self._config, self.path)
        # What was read after the checksums were taken is what they are of.
        if digests(self._config.sections) != self._files:
            raise ConfigError(f"out = {self.path}: a file that the configuration names has changed since this run started; start it again")
        self._claim()
        if self._config.settings.checkpoint_every:
            self._created.folder(self.path / "partial")
        remove_orphans(self.path)
        self._facts.update(facts, weights_sha256=weights)

    def _claim(self) -> None:
        """Writes config.yaml where there is none; of several processes one wins, and the others must agree with it."""
        if (self.path / "config.yaml").is_file():
            if not self._agreed:
                # It may have come since this object looked at the folder.
                refuse_another(self.path, self._text)
                self._agreed = True
            return
        self._created.folder(self.path)
        file = self.path / "config.yaml"
        temporary = temporary_beside(file)
        try:
            temporary.write_text(self._text, encoding="utf-8")
            sync(temporary)
            try:
                os.link(temporary, file)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                with file.open("x", encoding="utf-8") as opened:  # a file system without links
                    opened.write(self._text)
            sync(self.path)
            self._begun_now = self._agreed = True
            self._created.files.add(file)
        except FileExistsError:
            refuse_another(self.path, self._text)
        finally:
            temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Removes what this process wrote, if it began the folder and neither it nor another has got anywhere in it since.

        Otherwise a configuration that turned out to be impossible would bar the folder to the corrected one. What was there before,
        and what others write (records of their failures too), stays; and so do the failures of a shard, which the others gather.
        """
        if not self._begun_now or any(self.path.glob("arrays/*.npz")) or any(self.path.glob("partial/*")):
            return
        failed = {self.path / "records" / name for name, _, _ in self._listing()}
        if failed - self._created.files or (failed and self._shard):
            return
        self._created.remove()
        self._begun_now = False

    @contextmanager
    def replacing(self, path: Path, durable: bool = False) -> Iterator[Path]:
        """`invsolve.atomic.replacing` for a file of this folder, remembering what this process made."""
        self._created.folder(path.parent, self.path)
        new = not path.exists()
        with replacing(path, durable) as temporary:
            yield temporary
        if new:
            self._created.files.add(path)

    def array_file(self, id: str) -> Path:
        """Where the arrays of an id stand."""
        return self.path / "arrays" / f"{ids.file_name(id)}.npz"

    def record_file(self, id: str) -> Path:
        """Where the record of an id stands."""
        return self.path / "records" / f"{ids.file_name(id)}.json"

    def image_folder(self, id: str) -> Path:
        """Where the pictures of an id stand."""
        return self.path / "images" / ids.file_name(id)

    def is_finished(self, id: str) -> bool:
        """Whether the results of an id are complete, whichever process wrote them, and are there now."""
        stamps = self._stamps(id)
        if stamps is None:
            return False
        if self._known.get(id) != stamps:
            record = self.record(id)
            if record is None or not is_whole(self.array_file(id), record):
                return False
            self._known[id] = stamps
        return True

    def _stamps(self, id: str) -> _Stamps | None:
        """Time, size and place of record and arrays, by which a file that was looked at is known again; None without both."""
        try:
            found = [path.stat() for path in (self.record_file(id), self.array_file(id))]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def finished(self, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` whose results are complete."""
        return [id for id in ids if self.is_finished(id)]

    def record(self, id: str) -> dict[str, Any] | None:
        """What is known of an id: `rows` and `facts`, or `failed`; None where there is nothing, or half a file.

        Raises ConfigError for a record of another configuration.
        """
        held = self._record(self.record_file(id))
        return None if held is None or held["id"] != id else held

    def _record(self, file: Path) -> dict[str, Any] | None:
        held = read_record(file)
        if held is not None and held.get("config") != self._identity:
            raise ConfigError(f"out = {self.path}: {file.name} is of another configuration; choose another folder with out=...")
        return held

    def refuse_alias(self, id: str) -> None:
        """Raises OSError where the file system takes an id for another one, which differs in capitals or accents, and is there."""
        file = self.record_file(id)
        held = [entry.name for entry in os.scandir(file.parent)] if file.exists() else []
        if held and file.name not in held:
            raise OSError(f"this file system does not tell {id!r} from an id that differs in capitals or accents; rename its file")

    def refuse_changed(self, id: str) -> None:
        """Raises ConfigError if a file that the configuration names has changed since an id was finished."""
        record = self.record(id)
        if record is not None and "rows" in record:
            refuse_changed(record, self._config, self.path)

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
                self.refuse_alias(id)
                self._write_record(id, {"failed": message, **({"unwritten": True} if unwritten else {})})
            except OSError as error:
                if error.errno not in (*FULL, errno.EISDIR, None):  # None: the record there is another id's
                    raise

    def finish(
        self, id: str, arrays: Mapping[str, NDArray[Any]], rows: Sequence[Row], facts: Mapping[str, Any], trace: Mapping[str, Any]
    ) -> None:
        """Writes arrays and record of one id, whose pictures are already there. Raises OSError, and then leaves no half of it.

        ``facts`` also go to the manifest, and ``trace``, what is known of the way to the result, stays in the record.
        """
        self._claim()
        with self.replacing(self.array_file(id), durable=True) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
            kept = {"bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
        try:
            written = {"rows": [[*row[1:3], f"{row.value:.6g}"] for row in rows], "facts": dict(facts), "trace": dict(trace)}
            files = {**digests(self._config.sections, id), **self._files}
            self._write_record(id, {**written, **kept, "files": files, "run": self._facts})
        except OSError:
            if not self.is_finished(id):
                self.array_file(id).unlink(missing_ok=True)
            raise
        if (stamps := self._stamps(id)) is not None:
            self._known[id] = stamps
        if time.monotonic() - self._gathered > self._pause:
            self.gather()

    def gather(self) -> None:
        """Writes metrics.csv and manifest.json from all records, and again if another process has added one meanwhile.

        On a full disk they stay as they were: the ids that found no room have been reported, and the next call gathers again. A
        folder in the place of one of them is left there with a warning.
        """
        if not (self.path / "config.yaml").is_file():
            if not self._listing():
                return
            self._claim()
        try:
            self._gather()
        except IsADirectoryError as error:
            warnings.warn(f"not written, and no result depends on it: {error.filename}: {error.strerror}", stacklevel=2)
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
            # What the manifest said of the whole run stands in the records too, for one that was lost.
            facts = next((record["run"] for record in records if record.get("run")), {}) | self._facts
            manifest = {**facts, "images": finished, "failed": failed, "finished": list(finished)}
            self._write_changed("metrics.csv", table.getvalue())
            self._write_changed("manifest.json", json.dumps(manifest, indent=2) + "\n")
        self._gathered = time.monotonic()
        self._pause = max(_GATHER_EVERY, 50 * (self._gathered - start))

    def _write_changed(self, name: str, text: str) -> None:
        if not (self.path / name).is_file() or (self.path / name).read_bytes() != text.encode():
            with self.replacing(self.path / name) as temporary:
                temporary.write_bytes(text.encode())

    def _write_record(self, id: str, content: dict[str, Any]) -> None:
        self._claim()
        with self.replacing(self.record_file(id), durable=True) as temporary:
            held = {"id": id, "config": self._identity, "weights": self._weights, **content}
            temporary.write_text(json.dumps(held) + "\n", encoding="utf-8")

    def _listing(self) -> list[tuple[str, int, int]]:
        """Name, time and size of every record, sorted by name."""
        folder = self.path / "records"
        if not folder.is_dir():
            return []
        entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".json") and ids.temporary(entry.name) is None]
        stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]  # links may lead nowhere
        return sorted((name, one.st_mtime_ns, one.st_size) for name, one in stats)

    def _records(self) -> Iterator[dict[str, Any]]:
        """The records by id; those of finished ids only where the arrays are there too."""
        for name, _, _ in self._listing():
            held = self._record(self.path / "records" / name)
            if held is not None and ("failed" in held or self.is_finished(held["id"])):
                yield held
