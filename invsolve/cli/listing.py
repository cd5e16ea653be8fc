"""What can be named in a configuration, as lines of text."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable

from omegaconf import OmegaConf

from invsolve.config.names import _TABLES, GROUPS, component_file, names, resolve, table, unknown
from invsolve.resources import resource


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
