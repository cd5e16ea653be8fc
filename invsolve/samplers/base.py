"""What a sampler is: a frozen dataclass of settings with `init`, `step` and `result` over an explicit state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from torch import Tensor

from invsolve.levels import Move
from invsolve.noise import NoiseSource


class Unfit(TypeError):
    """A sampler that cannot serve a kind of operator, likelihood or prior: the TypeError of its `init`, as `sample` passes it on."""


@dataclass(frozen=True)
class State:
    """The iterate x (B, *X) of a trajectory, and the estimate x0_hat of the clean image that led to it.

    A sampler that must remember more derives its own state; fields are tensors, numbers, tuples of numbers or None, so
    that a half-finished trajectory can be saved. `statistics` names fields that are gathered on the way and feed back into
    nothing; an observer with a method `finish(rows, fields)` is given the fields of a last state that has any.
    """

    statistics: ClassVar[tuple[str, ...]] = ()

    x: Tensor
    x0: Tensor | None = None


@dataclass(frozen=True)
class HiddenState(State):
    """With the noise `hidden` (B, *Y) of entries of y that are not measured, which a trajectory draws once and keeps."""

    hidden: Tensor | None = None


@runtime_checkable
class Sampler(Protocol):
    """A method that draws from a posterior by walking a schedule.

    Optional: class attributes `guided = False` for samplers that need no measurement, and `remedy`, what to do about a step
    that is too large, for the message of a divergence; `plan(schedule)`, the list of moves, for those that do not walk a
    schedule once from top to bottom; `watch()`, an observer whose `moments(ids)`, `numbers(id)` and `verdict(id)` a run
    writes down (see `invsolve.chains.Chains`).
    """

    def init(self, target: Any, x: Tensor) -> Any:
        """The state before the first move; x is noise at the first level, (B, *X)."""
        ...

    def step(self, target: Any, state: Any, move: Move, noise: NoiseSource) -> Any:
        """The state after one reverse move."""
        ...

    def result(self, state: Any) -> Tensor:
        """The draw (B, *X) once the last move is done."""
        ...


class Stateless:
    """`init` and `result` of samplers whose state is the iterate alone."""

    def init(self, target: Any, x: Tensor) -> State:
        """The iterate."""
        return State(x)

    def result(self, state: State) -> Tensor:
        """The last iterate."""
        return state.x


def remedy_of(sampler: Any) -> str:
    """What to do about a step that is too large: the sampler's own `remedy`; else to lower its `zeta`, where it has one that acts."""
    own = getattr(sampler, "remedy", None)
    if own is not None:
        return str(own)
    return "lower zeta" if getattr(sampler, "zeta", None) else "take more steps"


MOST_TURNS = 1_000_000
"""A loop of more turns, at each step of a sampler, is taken for a slip: it would not end."""

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


@lru_cache
def _counts(kind: type) -> list[str]:
    """The fields of a dataclass that are annotated as whole numbers, or as such or None."""
    hints = get_type_hints(kind)
    return [f.name for f in fields(kind) if hints[f.name] in (int, int | None)]


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
