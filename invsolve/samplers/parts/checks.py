"""Checks of a sampler's settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from invsolve.engine.protocol import MOST_TURNS, _counts

_RULES: dict[str, Callable[[Any], bool]] = {
    "at least 0": lambda v: v >= 0,
    "at least 1": lambda v: v >= 1,
    "at least 2": lambda v: v >= 2,
    "a number > 0": lambda v: v > 0,
    "a number >= 0": lambda v: v >= 0,
    "a number in [0, 1]": lambda v: 0 <= v <= 1,
    "a number in [0, 1)": lambda v: 0 <= v < 1,
    "a number in (0, 1]": lambda v: 0 < v <= 1,
    "a share of the steps in [0, 1)": lambda v: 0 <= v < 1,
    "an interval (low, high)": lambda v: v[0] < v[1],
    "a finite number > 0": lambda v: 0 < v < math.inf,
    "a finite number >= 0": lambda v: 0 <= v < math.inf,
    "a whole number >= 0": lambda v: isinstance(v, int) and v >= 0,
    "a whole number in [0, 1000]": lambda v: isinstance(v, int) and 0 <= v <= 1000,
    "a whole number >= 1": lambda v: isinstance(v, int) and v >= 1,
}


@lru_cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """The fields of a dataclass that are annotated as a Literal, with what it allows."""
    hints = get_type_hints(kind)
    return {f.name: get_args(hints[f.name]) for f in fields(kind) if get_origin(hints[f.name]) is Literal}


def check_settings(sampler: Any, **rules: str) -> None:
    """For `__post_init__`: every Literal field holds one of its choices, no count is beyond `MOST_TURNS`, and `rules` are obeyed.

    Each names a field, which may also be None, and a key of `_RULES`, the words of the message:
    `check_settings(self, zeta="a number >= 0")`. Raises ValueError with the name, the value and what is needed.
    """
    for name, allowed in _choices(sampler.__class__).items():
        if getattr(sampler, name) not in allowed:
            raise ValueError(f"{name}={getattr(sampler, name)!r}; one of {', '.join(allowed)} is needed")
    for name in _counts(sampler.__class__):
        if isinstance(count := getattr(sampler, name), int) and count > MOST_TURNS:
            raise ValueError(f"{name}={count!r}; at most {MOST_TURNS} is needed")
    for name, rule in rules.items():
        value = getattr(sampler, name)
        if value is not None and not _RULES[rule](value):
            raise ValueError(f"{name}={value!r}; {rule} is needed")
