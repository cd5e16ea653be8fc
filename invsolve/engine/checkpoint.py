"""Half-finished trajectories on disk."""

from __future__ import annotations

import hashlib
import os
import pickle
import uuid
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import Unusable
from invsolve.levels import Move
from invsolve.streams import Noise, Row


def _feed(digest: Any, value: Any) -> None:
    """Feeds what a component is made of: its type, numbers, strings, arrays and tensors as they are now, at any depth; no caches."""
    digest.update(type(value).__qualname__.encode())
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        digest.update(repr((tuple(held.shape), held.dtype)).encode() + held.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (int, float, str, bytes, bool, type(None), torch.dtype, torch.device)):
        digest.update(repr(value).encode())
    elif isinstance(value, (list, tuple)):
        for part in value:
            _feed(digest, part)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(repr(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, (np.ndarray, np.generic)):
        digest.update(repr((value.shape, value.dtype)).encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (set, frozenset)):
        _feed(digest, sorted(map(repr, value)))
    elif isinstance(value, torch.nn.Module):
        _feed(digest, {**dict(value.named_parameters()), **dict(value.named_buffers())})
        _feed(digest, {k: v for k, v in vars(value).items() if isinstance(v, (int, float, str, tuple))})
        for name, part in value.named_modules():  # and what lies in no table of weights
            _feed(digest, {f"{name}.{k}": v for k, v in vars(part).items() if isinstance(v, (Tensor, np.ndarray))})
    elif hasattr(value, "__dict__"):
        # A cache fills as a run goes on, and counters count it.
        _feed(digest, {k: v for k, v in vars(value).items() if k not in ("_cache", "_times", "calls", "_run")})


def fingerprint(
    sampler: Any, target: Any, steps: Sequence[Move], seed: int, rows: Sequence[Row], shape: tuple[int, ...], dtype: torch.dtype, where: str
) -> dict[str, str]:
    """What a run is made of, by name; two runs with the same are the same run."""

    def of(value: Any) -> str:
        digest = hashlib.sha256()
        _feed(digest, value)
        return digest.hexdigest()

    # Behind a decoder stands the likelihood of images.
    prior, likelihood = target.prior, getattr(target.likelihood, "inner", target.likelihood)
    operator, known = getattr(likelihood, "operator", None), getattr(prior, "weights_sha256", "")
    behaviour = None
    if operator is not None:
        # What it does to one fixed signal: an operator may be made of functions, which cannot be compared.
        count = len(likelihood.y)
        probe = Noise(0, [("probe", k) for k in range(count)], dtype=dtype, device=likelihood.y.device, block=1).normal(
            likelihood.image_shape
        )
        behaviour = operator.A(probe)
    # The weights as they are, and not the checksum of the files that they came from: they may have been changed in place since.
    inner, codec = getattr(prior, "prior", prior), getattr(prior, "autoencoder", None)
    network = getattr(inner, "network", None) if known else None
    parts = [getattr(inner, name, None) for name in ("precision", "channels_last", "prediction", "table", "embedding", "guidance")]
    return {
        "sampler": repr(sampler),
        "schedule": of([(*m.t, *m.s) for m in steps]),
        "seed": repr((seed, where)),
        "rows": repr(list(rows)),
        "shape": repr((shape, dtype)),
        "measurement": of([likelihood, behaviour]),
        "prior": of([known, network, *parts, prior if network is None else codec]),
        "torch": str(torch.__version__),
    }


def _read(path: Path) -> dict[str, Any]:
    unreadable = f"{path} is not a checkpoint that can be read; delete it to start anew"
    if not zipfile.is_zipfile(path):
        raise Unusable(unreadable)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise Unusable(unreadable) from error
    if not isinstance(held, dict) or not {"identity", "chunk", "finished", "running"} <= set(held):
        raise Unusable(unreadable)
    return held


class Checkpoint:
    """One file with the finished chunks of a run and the state of the running one, replaced atomically.

    Raises Unusable if the file belongs to another run (and names what differs); it is never overwritten then.
    """

    def __init__(self, path: str | Path, identity: dict[str, str], every: int, chunk: int):
        self.path, self.identity, self.every = Path(path), identity, every
        self.content: dict[str, Any] = {"identity": identity, "chunk": chunk, "finished": {}, "running": None}
        if self.path.exists():
            held = _read(self.path)
            differing = [k for k, v in identity.items() if held.get("identity", {}).get(k) != v]
            if differing:
                raise Unusable(f"{self.path} belongs to another run: {', '.join(differing)} differ; choose another file or delete it")
            self.content = held

    @property
    def chunk(self) -> int:
        """Rows in a chunk: those of the run that began the file, whatever the limit of memory is now."""
        return int(self.content["chunk"])

    def finished(self, number: int) -> Tensor | None:
        """The result of a chunk, if it is done."""
        return self.content["finished"].get(number)

    def statistics(self, number: int) -> dict[str, Any] | None:
        """The fields of the last state of a finished chunk, if its sampler gathers statistics."""
        return self.content.get("statistics", {}).get(number)

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

    def save_finished(self, number: int, result: Tensor, statistics: dict[str, Any] | None = None) -> None:
        """Saves the result of a chunk, with the fields of its last state if an observer will want them."""
        self.content["finished"][number] = result.cpu()
        if statistics is not None:
            self.content.setdefault("statistics", {})[number] = dict(statistics)
        self.content["running"] = None
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes may be at work on the same trajectories.
        partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            torch.save(self.content, partial)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
