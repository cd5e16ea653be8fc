"""What may watch a trajectory: the event of a step, and observers that keep estimates or residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from invsolve.levels import Move
from invsolve.streams import Row


@dataclass(frozen=True)
class Event:
    """One finished step as an observer sees it. Tensors are the sampler's own: copy what is to be kept.

    index of total steps (from 0), the move t -> s, the iterate x (R, *X), x0_hat (R, *X) or None, and for each row its
    (image id, sample index).
    """

    index: int
    total: int
    move: Move
    x: Tensor
    x0_hat: Tensor | None
    rows: Sequence[Row]


Observer = Callable[[Event], None]


class Trajectory:
    """An observer that keeps x0_hat of chosen steps on the CPU, per row; of a latent prior, the code of it.

    Args:
        every: keep each `every`-th step and the last.
        rows: which (id, sample) rows to keep; None keeps all.
    """

    def __init__(self, every: int = 1, rows: Sequence[Row] | None = None):
        if every < 1:
            raise ValueError(f"every={every}; at least 1 is needed")
        self.every, self.wanted = every, None if rows is None else set(rows)
        self.frames: dict[Row, list[tuple[Move, Tensor]]] = {}

    def __call__(self, event: Event) -> None:
        """Keeps the step if it is due."""
        if event.x0_hat is None or (event.index % self.every and event.index != event.total - 1):
            return
        for r, row in enumerate(event.rows):
            if self.wanted is None or row in self.wanted:
                self.frames.setdefault(row, []).append((event.move, event.x0_hat[r].detach().cpu().clone()))


class Residuals:
    """An observer that keeps the discrepancies which the `Monitor` reads anyway, so that it costs nothing.

    ``kept[row]`` holds (index of the step, discrepancy of x0_hat), every few steps and at the last. Those of a trajectory that
    was resumed from a checkpoint begin where it was resumed.
    """

    def __init__(self) -> None:
        self.kept: dict[Row, list[tuple[int, float]]] = {}
        self.rows_per_pass = 0

    def begin(self, rows: int) -> None:
        """Keeps how many rows a pass through the prior holds."""
        self.rows_per_pass = rows

    def __call__(self, event: Event) -> None:
        """The readings come by `read`."""

    def read(self, move: Move, rows: Sequence[Row], misfit: Sequence[float]) -> None:
        """Keeps what the monitor has read."""
        for row, value in zip(rows, misfit, strict=True):
            self.kept.setdefault(row, []).append((move.index, value))
