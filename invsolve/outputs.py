"""The output folder of a run, written so that a run killed at any moment continues where it was.

    config.yaml               the resolved configuration; `invsolve run FOLDER/config.yaml` is the same run
    manifest.json             versions, device, seed, sha256 of the weights, and per id: input, time, network calls, peak memory
    metrics.csv               id, sample, metric, value (sample is an index, `mean` for the posterior mean, or `chains`)
    arrays/<id>.npz           y, x (where known), samples (n, C, H, W) in [-1, 1], mean, std
    images/<id>/panel.png     what a person looks at first; also sample_<k>.png, and trajectory.gif on request

Where the operator cannot tell an image from its mirror or negative (phase retrieval), `samples` are as they were drawn, while
mean, std, pictures and the PSNR and SSIM of metrics.csv are of samples aligned with `Operator.align`.

Every file is written beside its place and then moved there, and the npz last: an id is finished if its npz exists.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from invsolve.config import Config, difference, show
from invsolve.schema import ConfigError


class Row(NamedTuple):
    """One line of metrics.csv."""

    id: str
    sample: str
    metric: str
    value: float


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
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
        self.manifest: dict[str, Any] = {}
        self.rows: list[Row] = []
        self._text = show(config)
        self._begun_now = False
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out = {self.path}: is a file; choose another folder with out=...")
        if (self.path / "config.yaml").is_file():
            _refuse_another(self.path, self._text)
            self.manifest, self.rows = _read_manifest(self.path), _read_rows(self.path)
            self.rows = [row for row in self.rows if self.array_file(row.id).is_file()]
        elif self.path.is_dir():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strangers:
                raise ConfigError(
                    f"out = {self.path}: holds {strangers[0]} but no config.yaml, so it is no run; choose another with out=..."
                )

    def begin(self) -> None:
        """Creates the folder with its config.yaml, unless that is there."""
        if not (self.path / "config.yaml").is_file():
            with replacing(self.path / "config.yaml") as temporary:
                temporary.write_text(self._text, encoding="utf-8")
            self._begun_now = True

    def withdraw(self) -> None:
        """Removes what `begin` and `describe` wrote in this process, if nothing was finished or saved half-way since.

        Otherwise a configuration that turned out to be impossible would bar the folder to the corrected one.
        """
        if self._begun_now and not (self.path / "arrays").exists() and not any(self.path.glob("partial/*")):
            if (self.path / "partial").is_dir():
                (self.path / "partial").rmdir()
            for name in ("config.yaml", "manifest.json"):
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def array_file(self, id: str) -> Path:
        """Where the arrays of an id stand."""
        return self.path / "arrays" / f"{id}.npz"

    def image_folder(self, id: str) -> Path:
        """Where the pictures of an id stand."""
        return self.path / "images" / id

    def finished(self, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` whose results are complete."""
        return [id for id in ids if self.array_file(id).is_file()]

    def describe(self, **facts: Any) -> None:
        """Sets facts about the whole run in the manifest."""
        self.manifest.update(facts)
        self._write_manifest()

    def fact(self, id: str, key: str) -> Any:
        """What the manifest says about an id, or None."""
        return self.manifest.get("images", {}).get(id, {}).get(key)

    def fail(self, id: str, message: str) -> None:
        """Records that an id could not be sampled."""
        self.manifest.setdefault("failed", {})[id] = message
        self._write_manifest()

    def finish(self, id: str, arrays: Mapping[str, NDArray[Any]], rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
        """Writes metrics, manifest and arrays of one id, whose pictures are already there."""
        self.rows = [row for row in self.rows if row.id != id] + list(rows)
        self._write_rows()
        self.manifest.setdefault("images", {})[id] = dict(facts)
        self.manifest.get("failed", {}).pop(id, None)
        self._write_manifest()
        with replacing(self.array_file(id)) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.manifest["finished"] = self.finished(self.manifest.get("images", {}))
        with replacing(self.path / "manifest.json") as temporary:
            temporary.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")

    def _write_rows(self) -> None:
        with replacing(self.path / "metrics.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            writer.writerows([*row[:3], f"{row.value:.6g}"] for row in self.rows)


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


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is damaged ({error}); choose another folder with out=...") from error
    return dict(stored)


def _read_rows(path: Path) -> list[Row]:
    file = path / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [Row(line["id"], line["sample"], line["metric"], float(line["value"])) for line in csv.DictReader(opened)]
