"""Activations that are computed again for the backward pass instead of kept, and how many bytes a pass keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class _Largest:
    """Bytes of the largest segment that was recomputed while this was in `_watching`."""

    def __init__(self, apart: Collection[int]) -> None:
        self.bytes, self.apart = 0, apart


_watching: list[_Largest] = []


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), of which only the arguments are kept for the backward pass; the rest is computed again there.

    The same values and gradients, for one more forward pass of the function where it is differentiated. The function must be
    deterministic: no random state is kept (networks in evaluation mode draw nothing). Nothing but arguments is differentiated
    by. torch.func's reverse transforms (vjp, grad) refuse it with a RuntimeError.
    """
    if not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
        return function(*arguments)
    if _watching:
        apart = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments]
        _watching[-1].bytes = max(_watching[-1].bytes, saved_bytes(lambda: function(*apart), _watching[-1].apart))
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def saved_bytes(run: Callable[[], Any], apart: Collection[int] = ()) -> int:
    """Bytes that `run` keeps for its backward pass, and what its largest recomputed segment will take there for a while.

    `apart` holds data pointers of storages that are not counted, such as weights.
    """
    seen: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in apart:
            seen[storage.data_ptr()] = storage.nbytes()
        return saved

    segment = _Largest(apart)
    _watching.append(segment)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
            held = run()
            total = sum(seen.values())
            del held
    finally:
        _watching.pop()
    return total + segment.bytes
