"""What a foreign physics claims of itself, found out by its own numbers on signals of a fixed seed.

Signals come from a generator of their own: the global random state is put back as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from operators.streams import generator

Map = Callable[[Tensor], Tensor]

# The error allowed to a pseudo-inverse, which cuts off small singular values at a level of its own.
INVERSE = 1e-3


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """(of identities, of solves): the relative errors allowed where the physics computes in `dtype`."""
    return (1e-10, 1e-8) if dtype == torch.float64 else (1e-4, 1e-3)


@contextmanager
def quietly() -> Iterator[None]:
    """Without gradients, and with the global random state of the CPU put back afterwards."""
    before = torch.random.get_rng_state()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.random.set_rng_state(before)


def signals(count: int, shape: tuple[int, ...], name: str, dtype: torch.dtype, device: torch.device, complex: bool = False) -> Tensor:
    """Standard normal signals (count, *shape) of the stream `name`."""
    wide = (count, *shape, 2) if complex else (count, *shape)
    drawn = torch.randn(wide, generator=generator(0, name), dtype=torch.float64)
    return (torch.view_as_complex(drawn).to(dtype.to_complex()) if complex else drawn.to(dtype)).to(device)


def size(t: Tensor) -> float:
    """The Euclidean norm of all entries."""
    return float(torch.linalg.vector_norm(t))


def inner(a: Tensor, b: Tensor) -> float:
    """The real inner product of all entries."""
    return float((a.conj() * b).real.sum())


def off(a: Tensor, b: Tensor, scale: float | None = None) -> float:
    """||a - b|| relative to the larger of the two, or to `scale`; infinite where shapes differ or entries are not finite."""
    if a.shape != b.shape:
        return math.inf
    gap = size(a - b) / ((max(size(a), size(b)) if scale is None else scale) or 1.0)
    return gap if math.isfinite(gap) else math.inf


def writes(A: Map, x: Tensor, w: Tensor) -> bool:
    """Whether A changes its input, or a result that it gave before."""
    given, other = x.clone(), w.clone()
    y = A(given)
    kept = y.clone()
    A(other)
    return not (torch.equal(given, x) and torch.equal(other, w) and torch.equal(y, kept))


def nonlinearity(A: Map, x: Tensor, w: Tensor) -> float:
    """The relative error of A(0) = 0 or of A(2 x - w/2) = 2 A(x) - A(w)/2, whichever is larger."""
    y, z = A(x), A(w)
    scale = math.hypot(size(y), size(z))
    return max(off(A(torch.zeros_like(x)), torch.zeros_like(y), scale), off(A(2.0 * x - 0.5 * w), 2.0 * y - 0.5 * z, scale))


def mismatch(A: Map, A_adjoint: Map, x: Tensor, v: Tensor) -> float:
    """The relative error of <A x, v> = <x, A^T v>; infinite if A^T v has another shape than x."""
    y, back = A(x), A_adjoint(v)
    if back.shape != x.shape:
        return math.inf
    return abs(inner(y, v) - inner(x, back)) / (max(size(y) * size(v), size(x) * size(back)) or 1.0)


def prox_error(A: Map, A_adjoint: Map, prox: Callable[[Tensor, Tensor, Any], Tensor], z: Tensor, y: Tensor) -> float:
    """How far prox(z, y, gamma) is from a point where gamma A^T (A x - y) + x - z is 0, at two weights, one for all and per sample.

    The weights are such that neither term rules, whatever the scale of A. z and y are random in their whole spaces: a closed form
    that is right only where A sees z fails.
    """
    back = A_adjoint(y)
    unit = (size(z) / seen) if (seen := size(A_adjoint(A(z)))) else 1.0
    worst = 0.0
    for gamma in (0.7 * unit, 30.0 * unit):
        spread = torch.linspace(gamma, 2 * gamma, len(z), dtype=z.real.dtype, device=z.device).view(-1, *[1] * (z.ndim - 1))
        for weight in (torch.full_like(spread[:1], gamma), spread):
            x = prox(z, y, weight)
            slope = weight * (A_adjoint(A(x)) - back) + x - z
            worst = max(worst, off(slope, torch.zeros_like(slope), size(weight * back) + size(z)))
    return worst


def inverse_error(A: Map, inverse: Map, x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> float:
    """The largest relative error in the four conditions of a pseudo-inverse (Penrose 1955), on x, w (signals) and y, v."""
    back, seen, other = inverse(y), A(x), inverse(v)
    again = inverse(seen)
    if again.shape != x.shape:
        return math.inf
    return max(
        off(A(again), seen),
        off(inverse(A(back)), back),
        abs(inner(again, w) - inner(x, inverse(A(w)))) / ((size(x) * size(w)) or 1.0),
        abs(inner(A(back), v) - inner(y, A(other))) / ((size(y) * size(v)) or 1.0),
    )


def attempt(error: Callable[[], float]) -> float:
    """The error that is measured, infinite where the closed form raises: it does not take what it is given."""
    try:
        return error()
    except Exception:  # noqa: BLE001 - a foreign physics may raise anything
        return math.inf
