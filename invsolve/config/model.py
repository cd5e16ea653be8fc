"""A checked configuration: its sections, each a component by name with its values, and its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invsolve import ids
from invsolve.config import schema
from invsolve.config.names import resolve
from invsolve.config.settings import Settings, TrainerSettings, shard_of
from invsolve.errors import ConfigError, one_line

# What every data section takes beside the arguments of its class.
_SHARD = {"shard": schema.Field(str | None, None)}


@dataclass(frozen=True)
class Component:
    """One section: the class (or function) chosen by ``name`` in its group's table, and its checked ``values``.

    ``advised`` are those of the values that a sampler's file held for the operator, ``found`` says how they were found.
    """

    group: str
    name: str
    values: Mapping[str, Any]
    advised: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    found: str = dataclasses.field(default="", compare=False)

    def build(self, **injected: Any) -> Any:
        """The object itself. What its constructor refuses becomes a ConfigError that names the section."""
        factory = resolve(self.group, self.name)
        if self.group == "prior":
            injected["name"] = self.name
        values = {key: value for key, value in self.values.items() if self.group != "data" or key not in _SHARD}
        try:
            return factory(**injected, **values)
        except (ValueError, OSError, ImportError, TypeError, ArithmeticError, MemoryError) as error:
            # The latter are what Python says of numbers that are far too large or too small.
            kind = "" if isinstance(error, (ValueError, OSError, ImportError)) else f"{type(error).__name__}: "
            raise ConfigError(f"{self.group} {self.name}: {kind}{one_line(error)}") from error


@dataclass(frozen=True)
class Config:
    """A checked configuration: every section with its defaults, and the settings (``out`` is filled in)."""

    name: str
    sections: Mapping[str, Component]
    settings: Settings
    trainer: TrainerSettings = TrainerSettings()

    def items(self) -> list[Any]:
        """The items of the data section; of its shard i/n every n-th, from the i-th on. Raises ConfigError."""
        data = self.sections["data"]
        first, step = shard_of(data.values.get("shard"))
        found = data.build().items()
        if set("*?[") & set(str(data.values.get("root", data.values.get("measurement")))):
            # A glob may match what this very run has written.
            out = Path(str(self.settings.out)).expanduser().resolve()
            found = [item for item in found if not item.path.resolve().is_relative_to(out)]
        return ids.checked(found, f"data {data.name}")[first::step]

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dicts, lists and scalars, which `load` reads back to the same configuration."""
        plain: dict[str, Any] = {group: {"name": part.name, **part.values} for group, part in self.sections.items()}
        plain.update(dataclasses.asdict(self.settings), trainer=dataclasses.asdict(self.trainer))
        return {key: _plain(value) for key, value in plain.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, (list, tuple)) else value
