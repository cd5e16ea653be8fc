"""The names that a configuration may use, and the classes behind them; nothing is imported before it is asked for.

A table maps a name to "module:Class". Each package owns its table (``operators.OPERATORS``, ``invsolve.samplers.SAMPLERS``,
...), so that a new component is a new file and one line there. A file ``configs/<group>/<name>.yaml`` adds a
name of its own: values for a class, or defaults for the class of the same name.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from invsolve.config.schema import suggestion
from invsolve.errors import ConfigError
from invsolve.resources import resource, shipped_priors

SECTIONS = ("prior", "operator", "noise", "schedule", "sampler", "data")
GROUPS = (*SECTIONS, "run")


_TABLES = {
    "operator": "operators:OPERATORS",
    "noise": "operators:NOISES",
    "schedule": "invsolve.schedules:SCHEDULES",
    "sampler": "invsolve.samplers:SAMPLERS",
    "data": "invsolve.data.__init__:DATA",
}


def load_object(spec: str) -> Any:
    """The object behind "module:name"."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


def table(group: str) -> dict[str, str]:
    """Name -> "module:Class" of a group that is made of classes."""
    entries: dict[str, str] = load_object(_TABLES[group])
    return entries


def names(group: str) -> list[str]:
    """All names of a group, sorted: its classes and its configuration files (for priors, its folders)."""
    if group == "prior":
        return shipped_priors()
    files = {path.stem for path in resource("configs", group).glob("*.yaml")}
    return sorted(files | set(table(group)) if group in _TABLES else files)


def component_file(group: str, name: str) -> Path | None:
    """The file ``configs/<group>/<name>.yaml`` where there is one."""
    path = resource("configs", group, f"{name}.yaml")
    return path if os.path.isfile(path) else None  # False, too, for a name that is too long for any file


def resolve(group: str, name: str) -> Any:
    """The class or function that a section with this name is built by. Raises ConfigError for an unknown name."""
    if group == "prior":
        return load_object("invsolve:load_prior")
    entries = table(group)
    if name not in entries:
        raise unknown(group, name, names(group))
    return load_object(entries[name])


def unknown(what: str, name: str, choices: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table: it lists the names and the nearest one."""
    listed = list(choices)
    return ConfigError(f"unknown {what} {name!r}{suggestion(name, listed)}; there are: {', '.join(listed) or 'none'}")
