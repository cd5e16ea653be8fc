"""What a run needs beside its components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from invsolve.config.schema import digits
from invsolve.errors import ConfigError
from invsolve.resources import MEMORY_GB

# More of anything is a slip of the keyboard, and would fill the memory before the first step.
_MOST = 1_000_000
_MOST_PROCESSES = 1024  # on one machine, each of which holds the network


@dataclass(frozen=True)
class Settings:
    """What a run needs beside its components.

    ``samples``: posterior samples per image. ``seed``: of the measurement noise and of the sampling. ``out``: the output
    folder (default ``runs/<name of the preset or file>``). ``batch``: images sampled at once. ``memory_gb``: what the
    activations of one pass of the network may take, which decides how many samples it holds. ``checkpoint_every``: save a
    half-finished trajectory every so many steps (0: never). ``trajectory``: also write images/<id>/trajectory.gif.
    ``noise_device``: where the random numbers are drawn.
    """

    samples: int = 4
    seed: int = 0
    device: str = "auto"
    out: str | None = None
    batch: int = 4
    memory_gb: float | None = MEMORY_GB
    checkpoint_every: int = 0
    trajectory: bool = False
    progress: bool = True
    noise_device: Literal["cpu", "device"] = "cpu"

    def __post_init__(self) -> None:
        for key, least in (("samples", 1), ("seed", 0), ("batch", 1), ("checkpoint_every", 0)):
            most = _MOST if key in ("samples", "batch") else 2**63 - 1
            _check_range(key, getattr(self, key), least, most)
        if self.memory_gb is None:  # the default by its number, which belongs to what the run is
            object.__setattr__(self, "memory_gb", MEMORY_GB)
        elif not 0 < self.memory_gb < math.inf:
            raise ConfigError(f"memory_gb = {self.memory_gb}: must be positive, or null for the default of {MEMORY_GB:g}")
        if self.out is not None and (not self.out or "\0" in self.out):
            raise ConfigError(f"out = {self.out!r}: expected the name of a folder, or null for runs/<name of the preset or file>")


@dataclass(frozen=True)
class TrainerSettings:
    """How `invsolve eval` uses Lightning's Trainer; none of it changes a result.

    ``accelerator``, ``devices``, ``num_nodes`` and ``strategy`` are the Trainer's own. ``logger``: csv (in <out>/logs),
    tensorboard, wandb or none. ``workers``: processes that read images ahead. ``panels``: write the pictures of the first
    so many images (-1: of all), since drawing them may cost more than sampling. ``report``: write report.html in the end, unless
    this is a shard.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    logger: Literal["csv", "tensorboard", "wandb", "none"] = "csv"
    workers: int = 0
    panels: int = 8
    report: bool = True

    def __post_init__(self) -> None:
        for key, least in (("num_nodes", 1), ("workers", 0), ("panels", -1)):
            _check_range(f"trainer.{key}", getattr(self, key), least, _MOST_PROCESSES if key == "workers" else _MOST)
        count = digits(self.devices) if isinstance(self.devices, str) else self.devices
        if count is not None and count > _MOST_PROCESSES:  # below it is the Trainer that knows: -1 is all
            _check_range("trainer.devices", count, 0, _MOST_PROCESSES)


def _check_range(key: str, value: int, least: int, most: int) -> None:
    if value < least:
        raise ConfigError(f"{key} = {value}: must be at least {least}")
    if value > most:
        raise ConfigError(f"{key} = {value:.6g}: must be at most {most}" if value < 1e300 else f"{key}: must be at most {most}")


def shard_of(text: str | None) -> tuple[int, int]:
    """(i, n) of a shard "i/n", i from 0; (0, 1) for None. Raises ConfigError."""
    if text is None:
        return 0, 1
    first, _, count = map(digits, text.partition("/"))
    if first is None or count is None or first >= count:
        raise ConfigError(f"data.shard = {text!r}: expected i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3")
    return first, count
