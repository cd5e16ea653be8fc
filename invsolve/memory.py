"""How many samples fit into memory at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.levels import Level
from invsolve.reverse import linearize

# Below this many bytes of activations per byte of signal, no network we know of needs to be measured.
_GENEROUS = 6000


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30


def activation_bytes(prior: Any, x: Tensor, t: Level) -> int:
    """Bytes that one linearized call at x keeps for its backward pass, weights not counted."""
    network = getattr(prior, "network", None)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()} if isinstance(network, torch.nn.Module) else set()
    seen: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return saved

    calls = getattr(prior, "calls", None)
    before = calls.forward if calls is not None else 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        linearize(prior, x, t)
    if calls is not None:
        calls.forward = before  # a measurement of ours, not a call of the sampler
    return sum(seen.values())


def rows_that_fit(
    target: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rows: int, memory_gb: float | None, t: Level
) -> int:
    """The largest chunk of rows (at most `rows`) whose activations stay within the limit; at least 1.

    memory_gb is the limit, by default half of what is free. The prior is measured with one row, unless any prior would fit.
    Raises ValueError if memory_gb is not positive.
    """
    if memory_gb is not None and not memory_gb > 0:
        raise ValueError(f"memory_gb={memory_gb}; a number > 0 is needed")
    limit = memory_gb * 2**30 if memory_gb is not None else free_bytes(device) / 2
    signal = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    if rows == 1 or rows * signal * _GENEROUS <= limit:
        return rows
    x = torch.zeros((1, *shape), dtype=dtype, device=device)
    # Activations, the gradients that replace them, about ten signals of the sampler, and two blocks of noise.
    needed = 1.5 * activation_bytes(target.prior, x, t) + 42 * signal
    return max(1, min(rows, int(limit // needed)))
