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

from operators.core.streams import generator

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
    """The real inner product of all entries, summed in double precision."""
    return float((a.conj() * b).real.sum(dtype=torch.float64))


def unlike(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> float:
    """The relative error of <a, b> = <c, d>, products of a random signal and something independent of it.

    Such products are by the root of their length smaller than those of the norms, which they are relative to.
    """
    scale = max(size(a) * size(b) / math.sqrt(a.numel()), size(c) * size(d) / math.sqrt(c.numel()))
    gap = abs(inner(a, b) - inner(c, d)) / (scale or 1.0)
    return gap if math.isfinite(gap) else math.inf


def off(a: Tensor, b: Tensor, scale: float | None = None) -> float:
    """||a - b|| relative to the larger of the two, or to `scale`; infinite where shapes differ or entries are not finite."""
    if a.shape != b.shape:
        return math.inf
    gap = size(a - b) / ((max(size(a), size(b)) if scale is None else scale) or 1.0)
    return gap if math.isfinite(gap) else math.inf


def writes(A: Map, x: Tensor, w: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Whether A changes its input, or a result that it gave before; and A(x), A(w)."""
    given, other = x.clone(), w.clone()
    y = A(given)
    kept = y.clone()
    z = A(other).clone()
    return not (torch.equal(given, x) and torch.equal(other, w) and torch.equal(y, kept)), kept, z


def nonlinearity(A: Map, x: Tensor, w: Tensor, y: Tensor, z: Tensor) -> float:
    """The relative error of A(0) = 0 or of A(2 x - w/2) = 2 y - z/2 with y = A(x), z = A(w), whichever is larger."""
    scale = math.hypot(size(y), size(z))
    return max(off(A(torch.zeros_like(x)), torch.zeros_like(y), scale), off(A(2.0 * x - 0.5 * w), 2.0 * y - 0.5 * z, scale))


def mismatch(x: Tensor, y: Tensor, v: Tensor, back: Tensor) -> float:
    """The relative error of <y, v> = <x, back> with y = A(x) and back = A^T(v); infinite if `back` has another shape than x."""
    if back.shape != x.shape:
        return math.inf
    return unlike(y, v, x, back)


def prox_error(A: Map, A_adjoint: Map, prox: Callable[[Tensor, Tensor, Any], Tensor], z: Tensor, y: Tensor, back: Tensor) -> float:
    """How far prox(z, y, gamma) is from a point where gamma A^T (A x - y) + x - z is 0, the worst sample; `back` is A^T y.

    At one weight for all samples, and at weights per sample up to 40 times that, such that neither term rules, whatever the scale
    of A. z and y are random in their whole spaces: a closed form that is right only where A sees z fails.
    """
    unit = (size(z) / seen) if (seen := size(A_adjoint(A(z)))) else 1.0
    spread = torch.linspace(30.0 * unit, 2.0 * unit, len(z), dtype=z.real.dtype, device=z.device).view(-1, *[1] * (z.ndim - 1))
    worst = 0.0
    for weight in (torch.full_like(spread[:1], 0.7 * unit), spread):
        x = prox(z, y, weight)
        slope = weight * (A_adjoint(A(x)) - back) + x - z
        parts = zip(slope.split(1), (weight * back).split(1), z.split(1), strict=True)
        worst = max(worst, *(off(s, torch.zeros_like(s), size(b) + size(t)) for s, b, t in parts))
    return worst


def inverse_error(A: Map, inverse: Map, x: Tensor, w: Tensor, seen: Tensor, v: Tensor) -> float:
    """The largest relative error in the four conditions of a pseudo-inverse (Penrose 1955), on signals x, w, seen = A(x), and v."""
    again = inverse(seen)
    if again.shape != x.shape:
        return math.inf
    y = seen + v
    back, other = inverse(y), inverse(v)
    through = A(back)
    return max(
        off(A(again), seen),
        off(inverse(through), back),
        unlike(again, w, x, inverse(A(w))),
        unlike(through, v, y, A(other)),
    )


def attempt(error: Callable[[], float]) -> float:
    """The error that is measured, infinite where the closed form raises: it does not take what it is given."""
    try:
        return error()
    except Exception:  # noqa: BLE001 - a foreign physics may raise anything
        return math.inf
