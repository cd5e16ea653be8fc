"""Half-finished trajectories on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.levels import Move
from invsolve.noise import Row


def fingerprint(
    sampler: Any, target: Any, steps: Sequence[Move], seed: int, rows: Sequence[Row], shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, str]:
    """What a run is made of, by name; two runs with the same are the same run."""
    y = getattr(target.likelihood, "y", None)
    data = b"" if y is None else y.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return {
        "sampler": repr(sampler),
        "schedule": hashlib.sha256(repr([(m.t, m.s) for m in steps]).encode()).hexdigest(),
        "seed": repr(seed),
        "rows": repr(list(rows)),
        "shape": repr((shape, dtype)),
        "measurement": hashlib.sha256(data).hexdigest(),
        "prior": f"{type(target.prior).__name__} {getattr(target.prior, 'weights_sha256', '')}",
    }


class Checkpoint:
    """One file with the finished chunks of a run and the state of the running one, replaced atomically.

    Raises ValueError if the file belongs to another run (and names what differs); it is never overwritten then.
    """

    def __init__(self, path: str | Path, identity: dict[str, str], every: int, chunk: int):
        self.path, self.identity, self.every = Path(path), identity, every
        self.content: dict[str, Any] = {"identity": identity, "chunk": chunk, "finished": {}, "running": None}
        if self.path.exists():
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            differing = [k for k, v in identity.items() if held.get("identity", {}).get(k) != v]
            if differing:
                raise ValueError(f"{self.path} belongs to another run: {', '.join(differing)} differ; choose another file or delete it")
            self.content = held

    @property
    def chunk(self) -> int:
        """Rows in a chunk: those of the run that began the file, whatever memory is free now."""
        return int(self.content["chunk"])

    def finished(self, number: int) -> Tensor | None:
        """The result of a chunk, if it is done."""
        return self.content["finished"].get(number)

    def running(self, number: int) -> tuple[int, dict[str, Any], dict[tuple[int, ...], int]] | None:
        """(next step, fields of the state, noise counters) of a chunk, if it is under way."""
        held = self.content["running"]
        return held[1:] if held is not None and held[0] == number else None

    def due(self, move: Move) -> bool:
        """Whether the state should be saved after this move."""
        return self.every > 0 and (move.index + 1) % self.every == 0 and move.index + 1 < move.total

    def save_running(self, number: int, step: int, fields: dict[str, Any], counts: dict[tuple[int, ...], int]) -> None:
        """Saves the state after `step` moves."""
        self.content["running"] = (number, step, dict(fields), dict(counts))
        self._write()

    def save_finished(self, number: int, result: Tensor) -> None:
        """Saves the result of a chunk."""
        self.content["finished"][number] = result.cpu()
        self.content["running"] = None
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        torch.save(self.content, partial)
        os.replace(partial, self.path)
