"""What a batch gave: samples, means, residuals and reasons of failure, item by item; and what a run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.data.items import Item
from invsolve.runs.records import Row


@dataclass(frozen=True)
class Done:
    """One sampled item.

    y, x (or None), samples (n, C, H, W), the same aligned to the first (`_aligned`), and each aligned to the truth; mean and
    std of the aligned ones, or where a sampler is watched those of its whole chains; the residual of each sample and of the
    mean, a picture of y; frames of the trajectory (or none), rows of metrics of its chains, facts for the manifest, and the trace:
    "steps" at which the residual of x0_hat was read, "residuals" of each sample there, and "frames", the steps of the frames.
    """

    item: Item
    y: Tensor
    x: Tensor | None
    samples: Tensor
    aligned: Tensor
    closest: Tensor
    mean: Tensor
    std: Tensor
    residuals: list[float]
    view: Tensor
    frames: list[Any]
    chains: list[Row]
    facts: dict[str, Any]
    trace: dict[str, Any] = field(default_factory=dict)


class Outcome:
    """What became of a batch: items done, ids that failed with the reason, seconds, network calls (None if not counted).

    ``checkpoints`` are files of half-finished trajectories, to be deleted once the results are written. This is no dataclass, for
    Lightning would take such a prediction apart and copy it.
    """

    def __init__(
        self,
        done: Sequence[Done] = (),
        failed: Mapping[str, str] | None = None,
        seconds: float = 0.0,
        calls: dict[str, int] | None = None,
    ) -> None:
        self.done, self.failed, self.seconds, self.calls = list(done), dict(failed or {}), seconds, calls
        self.checkpoints: list[Path] = []

    def add(self, other: Outcome) -> None:
        """Adds another outcome to this one."""
        self.done += other.done
        self.failed |= other.failed
        self.seconds += other.seconds
        self.checkpoints += other.checkpoints
        if other.calls is not None:
            self.calls = {key: (self.calls or {}).get(key, 0) + count for key, count in other.calls.items()}


def picture_of(operator: Any, noise: Any, y: Tensor) -> Tensor:
    """The operator's picture (B, 1 or 3, H, W) in [-1, 1] of a measurement y (B, *measurement_shape)."""
    picture: Tensor = operator.view(2 * y - 1 if noise.intensity else y)  # counts are of the image in [0, 1]
    return picture


def align_all(operator: Any, samples: Tensor, x: Tensor | None) -> Tensor:
    """Samples (B, n, C, H, W), each under the symmetry of the operator that brings it nearest to the first of its image.

    For operators without symmetries, the samples. The first one stays as it is, or is itself aligned to the truth x
    (B, C, H, W) where that is known: this sets the common orientation of all, and no sample's relation to another.
    """
    first = samples[:, 0] if x is None else operator.align(samples[:, 0], x)
    return torch.stack([first, *(operator.align(s, first) for s in samples.unbind(1)[1:])], 1)


def as_float(y: Tensor) -> Tensor:
    """y in single precision, complex where it is."""
    return y.to(torch.complex64 if y.is_complex() else torch.float32)


def _minus(now: dict[str, int] | None, before: dict[str, int] | None) -> dict[str, int] | None:
    return None if now is None or before is None else {key: now[key] - before[key] for key in now}


LOST = "its results were removed or damaged while the run went on; the same command samples it again"


@dataclass
class RunResult:
    """What a run did: ids sampled now, ids found finished, ids that failed with the reason, and rows of metrics.csv.

    ``seconds`` and ``calls`` (network calls, forward and backward, None where the prior does not count them) are of the
    ids sampled now. ``whole`` is False for the part of one process of several.
    """

    out: Path
    sampled: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    calls: dict[str, int] | None = None
    whole: bool = True
