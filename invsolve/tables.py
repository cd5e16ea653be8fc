"""The names that a configuration may use, and the classes behind them; nothing is imported before it is asked for.

A table maps a name to "module:Class". Each package owns its table (``operators.OPERATORS``, ``invsolve.samplers.SAMPLERS``,
...), so that a new component is a new file and one line there. A file ``configs/<group>/<name>.yaml`` adds a
name of its own: values for a class, or defaults for the class of the same name.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from invsolve.resources import resource, shipped_priors
from invsolve.schema import ConfigError, suggestion

SECTIONS = ("prior", "operator", "noise", "schedule", "sampler", "data")
GROUPS = (*SECTIONS, "run")

DATA = {
    "crops": "invsolve.data_crops:Crops",
    "glyphs": "invsolve.data_glyphs:Glyphs",
    "images": "invsolve.data:Images",
    "measurement": "invsolve.data:Measurement",
    "mri_data": "invsolve.data_mri:MRIData",
    "phantom": "invsolve.data_mri:Phantoms",
}

# The log-likelihood that belongs to each noise: called as cls(operator, y, **noise.parameters).
LIKELIHOODS = {
    "complex_gaussian": "invsolve.likelihoods:GaussianLikelihood",
    "gaussian": "invsolve.likelihoods:GaussianLikelihood",
    "poisson": "invsolve.likelihoods:PoissonLikelihood",
    "poisson_gaussian": "invsolve.poisson_gaussian:PoissonGaussianLikelihood",
}

_TABLES = {
    "operator": "operators:OPERATORS",
    "noise": "operators:NOISES",
    "schedule": "invsolve.schedules:SCHEDULES",
    "sampler": "invsolve.samplers:SAMPLERS",
    "data": "invsolve.tables:DATA",
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


def listing(group: str) -> list[tuple[str, str]]:
    """(name, one line of help) of everything in a group. Raises ConfigError for an unknown group."""
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)
    return [(name, _help(group, name)) for name in names(group)]


def gathered(entries: Iterable[tuple[str, str]], least: int = 5) -> list[tuple[str, str]]:
    """A listing in which names that share their first two words or more, such as daps_official_*, stand on one line."""
    families: dict[str, list[tuple[str, str]]] = {}
    for name, text in entries:
        first, second, *rest = [*name.split("_"), "", ""]
        families.setdefault(f"{first}_{second}_" if any(rest) else name, []).append((name, text))
    lines = []
    for family in families.values():
        if len(family) < least:
            lines += family
            continue
        shared = "_".join(os.path.commonprefix([name.split("_") for name, _ in family]))
        words = " ".join(os.path.commonprefix([text.split() for _, text in family]))
        lines.append((f"{shared}_*", f"{words} ... ({len(family)} settings, named by `invsolve list --all`)".lstrip()))
    return sorted(lines)


def _help(group: str, name: str) -> str:
    """The first comment line of a file, the summary of a prior's card, or the first docstring line of a class."""
    if group == "prior":
        file = resource("data", "priors", name, "card.yaml")
        card = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
        return str(card.get("summary", "")) if isinstance(card, dict) else ""
    path = component_file(group, name)
    if path is not None:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        if first.startswith("#"):
            return first.lstrip("# ").strip()
    if group not in _TABLES or name not in table(group):
        return ""
    text = inspect.getdoc(resolve(group, name)) or ""
    return " ".join(text.partition("\n\n")[0].split())
