"""``key=value`` texts, as a command line has them: which of them pick components, and what the others set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from invsolve.config import schema, trees
from invsolve.config.names import SECTIONS
from invsolve.errors import ConfigError


def parse(overrides: Sequence[str], groups: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(section of ``groups`` -> name picked for it, the overrides that set values)."""
    picks: dict[str, Any] = {}
    values = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if text.startswith("-"):
            raise ConfigError(f"{text}: options stand before `run`, and there is no multirun: start one run per value")
        if text.startswith("~"):
            raise ConfigError(f"{text}: keys cannot be removed; set the value (key=null), or pick another component")
        if text.startswith("+"):
            raise ConfigError(f"{text}: keys cannot be added; write {text.lstrip('+')} (`invsolve show` lists the keys)")
        if not equals or not key:
            raise ConfigError(f"{text!r} is not key=value, such as seed=1 or sampler.zeta=0.5")
        if key.removesuffix(".name") in groups:
            picks[key.removesuffix(".name")] = value
        else:
            values.append(text)
    return picks, values


def value_of(
    override: str, groups: Sequence[str], fields_of: Callable[[str], Mapping[str, schema.Field]], strict: bool = True
) -> tuple[str, str | None, Any]:
    """(section, key, value) of ``section.key=value``, or (key, None, value) of a key of the run.

    Text stays as it is where ``fields_of(section)`` says that the key takes text (a path such as `*.png` or `010`), and is read as
    YAML elsewhere. Raises ConfigError, unless not ``strict``: then what is no YAML is text.
    """
    whole, _, text = override.partition("=")
    top, *rest = whole.split(".")
    if strict and (len(rest) > 1 or (rest and (top not in groups or not rest[0]))):
        raise ConfigError(f"unknown key {whole}; keys have the form section.key, with section one of {', '.join(groups)}")
    key = rest[0] if rest else None
    field = fields_of(top if rest else "").get(top if key is None else key)
    if field is not None and schema.takes_text(field.annotation) and text != "null" and text[:1] not in ("'", '"'):
        return top, key, text
    try:
        return top, key, trees.parse(text)
    except ValueError as error:
        if not strict:
            return top, key, text
        raise ConfigError(f"{override}: the value is not YAML that can be read: {error}") from error


def around(tree: Mapping[str, Any], values: Sequence[str]) -> dict[str, Any]:
    """``tree`` with the overrides ``values`` set, as far as can be said before it is known which components take them."""
    known = {key: {"name": given} if key in SECTIONS and isinstance(given, str) and "${" not in given else given
              for key, given in tree.items()}  # fmt: skip
    for text in values:
        top, key, value = value_of(text, SECTIONS, lambda _: {}, strict=False)
        if key is None:
            known[top] = value
        elif isinstance(known.get(top), dict):
            known[top] = {**known[top], key: value}
    return known


def looked_up(tree: Mapping[str, Any], *keys: str) -> Any:
    """`trees.look_up`, whose errors become ConfigErrors."""
    try:
        return trees.look_up(tree, *keys)
    except ValueError as error:
        raise ConfigError(error) from error
