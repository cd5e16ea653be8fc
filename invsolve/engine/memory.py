"""How many samples fit into memory at once, and how much a run took."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.kernels.linearize import linearize
from invsolve.levels import Level
from invsolve.numerics.recompute import saved_bytes
from invsolve.resources import MEMORY_GB

# Below this many bytes of activations per byte of signal, no network of pixels we know of needs to be measured.
_GENEROUS = 6000
# Writing 5 sets Linux' peak of the process's resident memory to its present value.
_REFERENCES = Path("/proc/self/clear_refs")


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device now, with what torch holds of a GPU and does not use; None where it is not known."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def activation_bytes(prior: Any, x: Tensor, t: Level) -> int:
    """Bytes that one linearized call at x keeps for its backward pass, weights not counted.

    With what the decoder of a latent prior keeps, for a guided sampler differentiates through both at once; and with the
    largest of the parts that are computed again (`checkpointing`), which is there for a while.
    """
    networks = [getattr(prior, "network", None), getattr(getattr(prior, "autoencoder", None), "network", None)]
    modules = [network for network in networks if isinstance(network, torch.nn.Module)]
    weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    calls = getattr(prior, "calls", None)
    before = dict(vars(calls)) if calls is not None else {}

    def run() -> Any:
        linear = linearize(prior, x, t)
        return linear, prior.decode(linear.x0.requires_grad_())

    kept = saved_bytes(run, weights)
    if calls is not None:
        vars(calls).update(before)  # a measurement of ours, not a call of the sampler
    return kept


def rows_that_fit(
    target: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rows: int, memory_gb: float | None, t: Level
) -> int:
    """The largest chunk of rows (at most `rows`) whose activations stay within the limit; at least 1.

    memory_gb is the limit, `MEMORY_GB` by default: the chunk depends on it, and never on the memory that happens to be free. The
    prior is measured with one row, unless any prior of pixels would fit.
    Raises ValueError if memory_gb is not positive, and if the chunk does not fit into what is free, with a limit that does.
    """
    memory_gb = MEMORY_GB if memory_gb is None else memory_gb
    if not memory_gb > 0:
        raise ValueError(f"memory_gb={memory_gb}; a number > 0 is needed")
    limit, free = memory_gb * 2**30, free_bytes(device)
    signal = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    latent = getattr(target.prior, "autoencoder", None) is not None  # a code says nothing about the size of its image
    generous = rows * signal * _GENEROUS
    all_fit = rows == 1 or (not latent and generous <= limit)
    if rows == 1 or (all_fit and (free is None or generous <= free)):
        return rows
    x = torch.zeros((1, *shape), dtype=dtype, device=device)
    # Activations, the gradients that replace them, about ten signals of the sampler, and two blocks of noise.
    needed = 1.5 * activation_bytes(target.prior, x, t) + 42 * signal
    chunk = rows if all_fit else max(1, min(rows, int(limit // needed)))
    if free is not None and chunk * needed > free:
        taken = f"a pass of {chunk} row{'s' if chunk > 1 else ''} takes about {_gib(chunk * needed)}, and {_gib(free)} are free on {device}"
        fits = f"memory_gb={math.floor(free / 2**30 * 900) / 1000:g} fits" if 1.2 * needed <= free else "not one row fits"
        raise ValueError(f"{taken}; {fits} (memory_gb={memory_gb:g} now)")
    return chunk


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"


def reset_peak(device: torch.device) -> None:
    """Lets `peak_megabytes` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _REFERENCES.exists():
        try:
            _REFERENCES.write_text("5")
        except OSError:  # in a sandbox, say: the peak is then that of the whole process so far
            return


def peak_megabytes(device: torch.device) -> float | None:
    """The most memory in use since `reset_peak`: of tensors on a CUDA device, else of the whole process; None if not known."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None
