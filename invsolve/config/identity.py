"""A configuration as text, and what makes two of them the same run."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from invsolve.config import trees
from invsolve.config.model import Config

# Settings that change how fast or where a result is computed, or what is shown meanwhile, but not which run it is.
_IMMATERIAL = ("device", "out", "batch", "checkpoint_every", "progress", "data.shard")
# Of earlier versions, which let the memory that was free divide the rows.
_FORMERLY = (*_IMMATERIAL, "memory_gb", "prior.checkpointing")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, old value, new value) of the first key in which two configurations are different runs, or None.

    Both as from `Config.as_dict`; the keys that do not change results (device, out, progress and the like) are not compared.
    """
    flat = [{key: value for key, value in flatten(tree) if not _immaterial(key)} for tree in (old, new)]
    for key in dict.fromkeys([*flat[1], *flat[0]]):
        values = [tree.get(key, "absent") for tree in flat]
        if values[0] != values[1]:
            return key, values[0], values[1]
    return None


def identity(config: Any) -> str:
    """A checksum of all that `difference` compares."""
    return _checksum(config.as_dict(), _IMMATERIAL)


def identities(tree: Mapping[str, Any]) -> tuple[str, str]:
    """What a stored configuration may be known by: its `identity`, and that of earlier versions."""
    return _checksum(tree, _IMMATERIAL), _checksum(tree, _FORMERLY)


def _checksum(tree: Mapping[str, Any], left_out: tuple[str, ...]) -> str:
    flat = {key: value for key, value in flatten(tree) if not _immaterial(key, left_out)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()


def _immaterial(key: str, left_out: tuple[str, ...] = _IMMATERIAL) -> bool:
    return key in left_out or key.startswith("trainer.")


def flatten(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(section.key or key, value) of everything in a configuration, in order."""
    flat = []
    for key, value in tree.items():
        flat += [(f"{key}.{sub}", member) for sub, member in value.items()] if isinstance(value, Mapping) else [(key, value)]
    return flat


def show(config: Config) -> str:
    """The configuration as YAML that `load` reads; comments tell the units of sigma and how advised settings were found."""
    blocks = []
    for key, value in config.as_dict().items():
        text = trees.dump({key: value})
        if key == "noise" and "sigma" in value:
            line, sigma = f"  sigma: {value['sigma']}\n", value["sigma"]
            both = f"[0, 1] units; {2 * sigma:g} in [-1, 1]" if value.get("units") == "unit" else f"[-1, 1] units; {sigma / 2:g} in [0, 1]"
            text = text.replace(line, f"{line[:-1]}  # {both}\n")
        if key in config.sections and config.sections[key].found:
            told = " ".join(config.sections[key].found.split())
            text = textwrap.fill(told, 120, initial_indent="# ", subsequent_indent="# ") + "\n" + text
        blocks.append(text)
    return "".join(blocks)
