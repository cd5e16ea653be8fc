"""Sums, norms and gradients of each row of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def pulled(f: Map, z: Tensor) -> tuple[Tensor, Map]:
    """(f(z), u -> J^T u) for an f that acts on each row of z (B, *Z) alone; the second may be called once."""
    # Also where the caller runs under inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False), torch.enable_grad():
        z = (z.clone() if z.is_inference() else z.detach()).requires_grad_()
        value = f(z)

    def pull(u: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(value, z, u)
        return grad

    return value.detach(), pull


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product of each row, (B,)."""
    return (a.conj() * b).real.flatten(1).sum(1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One number for each row (B,), shaped to multiply (B, *X)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def unit(v: Tensor) -> Tensor:
    """Each sample (B, *X) divided by its Euclidean norm; zero stays zero."""
    length = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(torch.finfo(v.dtype).tiny)
    return v / length.view(-1, *[1] * (v.ndim - 1))


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)
