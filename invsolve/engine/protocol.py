"""What a sampler is: a frozen dataclass of settings with `init`, `step` and `result` over an explicit state."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Protocol, get_type_hints, runtime_checkable

from torch import Tensor

from invsolve.levels import Move
from invsolve.streams import NoiseSource


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
    writes down (see `invsolve.engine.chains.Chains`).
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


@lru_cache
def _counts(kind: type) -> list[str]:
    """The fields of a dataclass that are annotated as whole numbers, or as such or None."""
    hints = get_type_hints(kind)
    return [f.name for f in fields(kind) if hints[f.name] in (int, int | None)]
