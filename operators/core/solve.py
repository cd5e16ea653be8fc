"""Conjugate gradients on a batch of independent symmetric positive semi-definite systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class NotConverged(RuntimeError):
    """Conjugate gradients used up their iterations: the system is too ill-conditioned for them, or not positive semi-definite."""


def default_tolerance(dtype: torch.dtype) -> float:
    """Relative residual asked of conjugate gradients: 1e-11 in double precision, 1e-6 otherwise."""
    return 1e-11 if dtype in (torch.float64, torch.complex128) else 1e-6


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product per sample, shaped (B, 1, ..., 1)."""
    axes = tuple(range(1, a.ndim))
    return (a.conj() * b).real.sum(axes, keepdim=True)


@torch.no_grad()
def _iterate(system: Map, b: Tensor, start: Tensor | None, tol: float, max_iter: int) -> Tensor:
    x = torch.zeros_like(b) if start is None else start.clone()
    r = b.clone() if start is None else b - system(x)
    p = r
    rr = _inner(r, r)
    goal = tol**2 * _inner(b, b)
    if not bool(rr.isfinite().all()):
        raise RuntimeError(f"conjugate gradients were given values that are not finite (squared residuals {rr.flatten().tolist()})")
    active = rr > goal
    for _ in range(max_iter):
        if not bool(active.any()):
            return x
        q = system(p)
        pq = _inner(p, q)
        # Rows that have converged are frozen: going on would change them with the rows they happen to share a batch with.
        alpha = torch.where(active, rr / torch.where(active, pq, 1.0), 0.0)
        x = x + alpha * p
        r = r - alpha * q
        new = _inner(r, r)
        beta = torch.where(active, new / torch.where(active, rr, 1.0), 0.0)
        p = torch.where(active, r + beta * p, p)
        rr = torch.where(active, new, rr)
        # So written that a sample that turned to NaN counts as not converged.
        active = ~(rr <= goal)
    if bool(active.any()):
        worst = float((rr / _inner(b, b)).sqrt().max())
        raise NotConverged(
            f"conjugate gradients reached a relative residual of {worst:.2e} after {max_iter} iterations, asked for {tol:.0e};"
            " allow more iterations (max_iter) or a larger tol"
        )
    return x


class _Inverse(torch.autograd.Function):
    """b -> S^{-1} b, whose adjoint is itself, so that the iterations need not be stored for the backward pass."""

    @staticmethod
    def forward(b: Tensor, start: Tensor | None, system: Map, tol: float, max_iter: int) -> Tensor:
        return _iterate(system, b, start, tol, max_iter)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        system, tol, max_iter = ctx.options
        return conjugate_gradient(system, grads[0], tol=tol, max_iter=max_iter), None, None, None, None


def conjugate_gradient(system: Map, b: Tensor, *, start: Tensor | None = None, tol: float | None = None, max_iter: int = 2000) -> Tensor:
    """Solve S x = b for each sample, S symmetric (Hermitian) positive semi-definite and b in its range.

    `system` maps (B, ...) to (B, ...) and acts on each sample alone; b is (B, ...), real or complex. Iterates until
    ||S x - b|| <= tol ||b|| for every sample (recursive residual; default 1e-11 in double, 1e-6 in single precision), from
    `start` or zero. Steps are per sample and converged samples are left alone, so a batch gives what its samples give alone.
    Differentiable in b, any number of times, by implicit differentiation; not in parameters of `system`.

    Raises NotConverged, a RuntimeError, with the residual if `max_iter` iterations do not suffice; RuntimeError if b or `start` is
    not finite.
    Source: Hestenes & Stiefel 1952; Golub & Van Loan, Matrix Computations, Alg. 11.3.3.
    """
    tolerance = default_tolerance(b.dtype) if tol is None else tol
    result: Tensor = _Inverse.apply(b, start, system, tolerance, max_iter)
    return result
