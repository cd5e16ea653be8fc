"""When two configurations are one run, told by their trees (as from `Config.as_dict`, or as they were stored)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Settings that change how fast or where a result is computed, or what is shown meanwhile, but not which run it is.
_IMMATERIAL = ("device", "out", "batch", "checkpoint_every", "progress", "data.shard")


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
    return identity_of(config.as_dict())


def identity_of(tree: Mapping[str, Any]) -> str:
    """`identity` of a configuration as `Config.as_dict` gives it, or as it was stored."""
    flat = {key: value for key, value in flatten(tree) if not _immaterial(key)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()


def _immaterial(key: str) -> bool:
    return key in _IMMATERIAL or key.startswith("trainer.")


def flatten(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(section.key or key, value) of everything in a configuration, in order."""
    flat = []
    for key, value in tree.items():
        flat += [(f"{key}.{sub}", member) for sub, member in value.items()] if isinstance(value, Mapping) else [(key, value)]
    return flat
