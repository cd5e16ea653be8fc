"""A constructor's signature read as the schema of one configuration section.

Nothing is declared twice: the keys, types and defaults of ``sampler: {name: dps, ...}`` are those of the class behind
the name ``dps``. Values come from YAML or the command line as plain scalars and lists.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from invsolve.config.trees import missing
from invsolve.errors import ConfigError


class _Required:
    """The default of a key that has none."""

    def __repr__(self) -> str:
        return "???"


REQUIRED = _Required()
_NO_FIT = object()
_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of a section: its type as annotated, and its default (``REQUIRED`` where there is none)."""

    annotation: Any
    default: Any = REQUIRED


def fields_of(factory: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, Field]:
    """The keys that ``factory`` (a class or a function) can be called with, in order, without those in ``skip``."""
    if dataclasses.is_dataclass(factory):
        hints = typing.get_type_hints(factory)
    else:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    fields = {}
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in named and parameter.name not in skip:
            default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = Field(hints.get(parameter.name, Any), default)
    return fields


def check(section: str, owner: str, values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """``values`` converted to their annotated types and completed by the defaults, in the order of ``fields``.

    ``section`` is the prefix of the keys in messages ("" at top level), ``owner`` the name of what takes them. Raises
    ConfigError for an unknown key, a wrong type, a required key that is absent, and ??? wherever it is left.
    """
    prefix = f"{section}." if section else ""
    for key in values:
        if key not in fields:
            takes = ", ".join(fields) or "no keys"
            raise ConfigError(f"unknown key {prefix}{key}{suggestion(str(key), fields, prefix)}; {owner} takes: {takes}")
    checked = {}
    for key, field in fields.items():
        if key in values and missing(values[key]):
            raise ConfigError(f"{prefix}{key} is missing: {values[key]!r} says that it is to be given ({describe(field.annotation)})")
        if key in values:
            checked[key] = convert(values[key], field.annotation, prefix + key)
        elif field.default is REQUIRED:
            raise ConfigError(f"{prefix}{key} is missing: {owner} needs it ({describe(field.annotation)})")
        else:
            checked[key] = field.default
    return checked


def suggestion(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """The text " (did you mean ...?)" for the nearest of ``choices``, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def convert(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as the annotated type; a whole float serves as an int, an int as a float, a whole number as text.

    Raises ConfigError naming ``key``, the value and what is expected.
    """
    options = _options(annotation)
    for loose in (False, True):
        for option in options:
            fitted = _fit(value, option, loose)
            if fitted is not _NO_FIT:
                return fitted
    raise ConfigError(f"{key} = {_shown(value)}: expected {describe(annotation)}")


def _shown(value: Any) -> str:
    """A value for a message; of a long one the beginning."""
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def digits(text: str) -> int | None:
    """The number that a text of up to 18 ASCII digits writes, or None: `str.isdigit` also takes such as superscripts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def takes_text(annotation: Any) -> bool:
    """Whether a value of this annotation can be nothing but text (or null)."""
    options = {option for option in _options(annotation) if option not in (None, type(None))}
    return options <= {str, Path} and str in options


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for option in typing.get_args(annotation) for member in _options(option))
    return (annotation,)


def _fit(value: Any, option: Any, loose: bool) -> Any:
    """``value`` as the type ``option`` (not a union), or ``_NO_FIT``; ``loose`` allows conversions between scalars."""
    origin, args = typing.get_origin(option), typing.get_args(option)
    if option is Any:
        return value
    if option in (None, type(None)):
        return None if value is None else _NO_FIT
    if origin is Literal:
        return next((choice for choice in args if type(choice) is type(value) and choice == value), _NO_FIT)
    if origin is tuple or origin in _SEQUENCES:
        return _fit_sequence(value, origin, args)
    if origin in _MAPPINGS:
        return dict(value) if isinstance(value, collections.abc.Mapping) and all(isinstance(key, str) for key in value) else _NO_FIT
    if option in (bool, int, float, str):
        return _fit_scalar(value, option, loose)
    return _NO_FIT


def _fit_scalar(value: Any, option: type, loose: bool) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return _NO_FIT
    if type(value) is option:
        return value
    if not loose or isinstance(value, bool) or not isinstance(value, (int, float)) or option is bool:
        return _NO_FIT
    if option is int and (math.isinf(value) or value != int(value)):
        return _NO_FIT
    if option is str and isinstance(value, float):  # whether it was written 1e3 or 1000.0 is not known any more
        return _NO_FIT
    try:
        return option(value)
    except (OverflowError, ValueError):  # beyond the range of doubles, or of what is written as text
        return _NO_FIT


def _fit_sequence(value: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _NO_FIT
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            return _NO_FIT
        wanted = args
    else:
        wanted = ((args[0] if args else Any),) * len(value)
    try:
        members = tuple(convert(member, annotation, "") for member, annotation in zip(value, wanted, strict=True))
    except ConfigError:
        return _NO_FIT
    return list(members) if origin is list else members


def describe(annotation: Any) -> str:
    """What may stand in a configuration for this annotation, in words."""
    words = [text for text in map(_describe_option, _options(annotation)) if text]
    if not words:
        return "a Python object, which a configuration cannot hold"
    return " or ".join(dict.fromkeys(words))


def _describe_option(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    scalars = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "any value"}
    if option in (None, type(None)):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: [" + ", ".join(map(describe, args)) + "]"
    if origin is tuple or origin in _SEQUENCES:
        return "a list" + (f" ({describe(args[0])} each)" if args else "")
    if origin in _MAPPINGS:
        return "{key: value, ...}"
    return scalars.get(option, "")
