"""What the file of a sampler advises for the operator of a run: settings, a schedule, and how they were found.

``configs/sampler/<name>.yaml`` holds values of the sampler and up to three keys of its own: ``schedule``, the section for runs
that name none (by default `SCHEDULE`); ``found``, how the values were found; ``families``, a list of entries that each hold
``operators`` and, for those, values, a schedule or a text ``found`` in place of the file's. An operator is listed by its name,
or as name/kind, such as inpainting/random, where it has a setting ``kind``; the entry with name/kind goes before the one with
the name. What a run sets itself goes before all of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from invsolve.errors import ConfigError

SCHEDULE: Mapping[str, Any] = {"name": "ddpm", "steps": 100}
"""The schedule of a run that names none, with a sampler whose file names none."""

_OWN = ("schedule", "found", "families")


@dataclass(frozen=True)
class Advice:
    """``values`` of the sampler (with its ``name``), a ``schedule`` section, and how those of ``source`` were found."""

    values: Mapping[str, Any] = field(default_factory=dict)
    schedule: Any = field(default_factory=lambda: SCHEDULE)
    source: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    def found(self, values: Mapping[str, Any]) -> str:
        """How the settings of a run were found: the file's text, or nothing where the run changed what it is about."""
        return self.text if all(values.get(key) == value for key, value in self.source.items()) else ""


def advise(file: Mapping[str, Any], operator: str, kind: str | None, path: str) -> Advice:
    """The advice of a sampler's file, read from ``path``, for an operator. Raises ConfigError for families that are no such list."""
    families = file.get("families") or []
    if not isinstance(families, list) or not all(isinstance(one, Mapping) and isinstance(one.get("operators"), list) for one in families):
        raise ConfigError(f"{path}: families must be a list of entries that each hold a list of operators")
    listed = {name: one for one in reversed(families) for name in one["operators"]}
    family = listed.get(f"{operator}/{kind}", listed.get(operator, {}))
    own, above = ({key: value for key, value in part.items() if key not in (*_OWN, "operators")} for part in (file, family))
    values, text = own | above, str(family.get("found") or file.get("found") or "").strip()
    source = above if family.get("found") else {key: value for key, value in values.items() if key != "name"}
    return Advice(values, family.get("schedule", file.get("schedule", SCHEDULE)), source, text)
