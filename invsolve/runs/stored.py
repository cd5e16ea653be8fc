"""What a run folder says of itself, read without executing or looking up anything that it names."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invsolve import ids
from invsolve.config import trees
from invsolve.config.identity import difference, flatten, identities
from invsolve.config.load import assemble
from invsolve.config.model import Config
from invsolve.config.names import SECTIONS
from invsolve.config.settings import Settings
from invsolve.errors import ConfigError
from invsolve.runs.digests import digests, path_of, sha256_of
from operators.core.trust import without_code


def load_run(folder: str | Path, trust: bool = False) -> Config:
    """The configuration of a run folder without its data section, which may name what is no more.

    It is read as it stands: no ${...} is looked up, and unless ``trust``, no file of a custom operator is imported. Raises ConfigError.
    """
    tree = tree_of(Path(folder))
    groups = [group for group in SECTIONS if group != "data"]
    held = {key: value for key, value in tree.items() if key not in ("data", "trainer")}
    with without_code(not trust), trees.literally():
        sections, settings = assemble(held, (), groups, Settings, str(Path(folder) / "config.yaml"))
    return Config(Path(folder).resolve().name, sections, settings)


def tree_of(folder: Path) -> dict[str, Any]:
    """config.yaml of a run folder as it stands. Raises ConfigError where there is none, and for what was cut off."""
    path = folder / "config.yaml"
    if not os.path.isfile(path):
        raise ConfigError(f"{folder}: holds no config.yaml, so it is no run")
    try:
        text = path.read_text(encoding="utf-8")
        tree = _plain(text)
    except ValueError as error:  # bytes that are no text, and text that is no YAML
        raise ConfigError(_cut(path)) from error
    if not tree or not text.endswith("\n"):
        raise ConfigError(_cut(path))
    return tree


def _cut(path: Path) -> str:
    return (
        f"{path} is cut short or damaged; delete it, and the command that began the run writes it again and goes on with what is finished"
    )


def refuse_another(folder: Path, text: str) -> None:
    """Raises ConfigError unless config.yaml of a folder is of the same run as ``text``, which is what would be written there."""
    stored = tree_of(folder)
    # Both sides pass through YAML, so that what it cannot tell apart (a tuple and a list) does not count.
    wanted = _plain(text)
    keys, all_keys = ([key for key, _ in flatten(tree)] for tree in (stored, wanted))
    if len(keys) < len(all_keys) and keys[:-1] == all_keys[: len(keys) - 1] and stored.get("trainer") is None:
        raise ConfigError(_cut(folder / "config.yaml"))
    if differs := difference(stored, wanted):
        key, old, new = differs
        raise ConfigError(f"out = {folder}: holds a run with {key} = {old}, and this one has {new}; choose another folder with out=...")


def _plain(text: str) -> dict[str, Any]:
    tree = trees.unescaped(trees.parse(text))
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a run folder by id; what is half-written, and what no run writes, is left out.

    Raises ConfigError for a record of another configuration than config.yaml.
    """
    wanted, found = identities(tree_of(folder)), {}
    for path in sorted((folder / "records").glob("*.json")):
        record = read_record(path)
        if record is None:
            continue
        if record.get("config", wanted[0]) not in wanted:
            raise ConfigError(f"{path} is of another configuration than {folder / 'config.yaml'}; sample its image again")
        found[record["id"]] = record
    return found


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no file, or what a machine that stopped left of one, or no JSON of ours."""
    try:
        # No device or pipe, which a name may lead to: they have no end.
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (FileNotFoundError, ValueError, RecursionError):  # bytes that are no text, text that is no JSON, numbers without end
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none, or what is no record of the id that the file is named by (half a file, say)."""
    held = None if ids.temporary(path.name) else read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("id"), str) or ids.file_name(held["id"]) != path.stem:
        return None
    # What was sampled has an id that is a file's name; what failed may have failed for that.
    whole = "rows" in held and not ids.fault(held["id"]) and _are_rows(held["rows"])
    facts = all(isinstance(held.get(key, {}), dict) for key in ("facts", "trace", "files", "run"))
    if not facts or not (whole or ("rows" not in held and isinstance(held.get("failed"), str))):
        return None
    return dict(held) if _are_facts(held.get("facts", {})) and _is_trace(held.get("trace", {})) else None


def _are_rows(rows: Any) -> bool:
    """Whether these are lists of (sample, metric, number as text)."""
    try:
        return all(isinstance(sample, str) and isinstance(metric, str) and float(value) is not None for sample, metric, value in rows)
    except (TypeError, ValueError, OverflowError):
        return False


def _are_facts(facts: Mapping[str, Any]) -> bool:
    """Whether what is computed with is of its type, where it is there."""
    calls, memory = facts.get("network_calls"), facts.get("peak_memory_mb")
    numbers = _is_number(facts.get("seconds", 0)) and (memory is None or _is_number(memory))
    return numbers and (calls is None or (isinstance(calls, dict) and all(map(_is_number, calls.values()))))


def _is_trace(trace: Mapping[str, Any]) -> bool:
    """Whether these are steps, for each sample as many residuals, and the steps of frames; any of them may be missing."""
    steps, columns, frames = (trace.get(key, []) for key in ("steps", "residuals", "frames"))
    if not all(isinstance(one, list) for one in (steps, columns, frames)):
        return False
    if not all(type(step) is int and 0 <= step < _MOST_STEPS for step in (*steps, *frames)):
        return False
    return all(isinstance(column, list) and len(column) == len(steps) and all(map(_is_number, column)) for column in columns)


_MOST_STEPS = 10**9


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that fits into double precision, and no truth value."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(file: Path, record: Mapping[str, Any], thorough: bool = True) -> bool:
    """Whether an array file is the one that the record of a result tells of, to the byte; of old records, by its length."""
    if "rows" not in record or not file.is_file() or file.stat().st_size != record.get("bytes"):
        return False
    return not thorough or record.get("sha256", "") in ("", sha256_of(file))


def refuse_changed(record: Mapping[str, Any], config: Config, where: Path) -> None:
    """Raises ConfigError if a file that decided a result (a mask, say) is no longer what it was then."""
    then = record.get("files")
    if not isinstance(then, Mapping):
        return
    for key, now in digests(config.sections, record["id"]).items():
        if then.get(key) != now:
            path = path_of(config.sections, key)
            raise ConfigError(
                f"out = {where}: {path} ({key}) has changed since {record['id']} was sampled; choose another folder with out=..."
            )
