"""Small optimisation problems inside a step: Adam, and least squares solved no further than the noise of y allows.

Rows never meet, and a row that has arrived is frozen, so that a batch gives what its rows give alone. The host is asked
whether all rows have arrived now and then only: every 25 steps of Adam, and once in an iteration of the other solvers, which costs
a solve or a pass through a decoder.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.numerics.adam import Objective
from invsolve.numerics.rows import Map, _column, _inner, pulled

# A residual this close to the wanted one counts as it.
_NEAR = 1 + 1e-3


def misfit(likelihood: Any, decode: Map) -> Objective:
    """z -> (discrepancy of decode(z), gradient by z of the mean squared residual), with one pass through `decode`.

    For Gaussian noise that is ||y - A(decode z)||^2 / m exactly; for any other likelihood the residual is weighted as in its
    `misfit_grad`.
    """
    unit = getattr(likelihood, "sigma", 0.0) or 1.0

    def objective(z: Tensor) -> tuple[Tensor, Tensor]:
        x, pull = pulled(decode, z)
        m = likelihood.measured.to(x.dtype)
        if isinstance(likelihood, GaussianLikelihood):
            r = likelihood.residual(x)
            value = (_inner(r, r) / m).sqrt() / unit
            grad = likelihood.operator.A_vjp(x, r) * _column(-2 / m, x)
        else:
            value = likelihood.discrepancy(x)
            grad = likelihood.misfit_grad(x) * _column(2 * unit * value / m.sqrt(), x)
        return value, pull(grad)

    return objective


def conjugate_gradients(
    likelihood: GaussianLikelihood, decode: Map, z: Tensor, *, limit: Tensor | None, rho: float | None = None, steps: int
) -> Tensor:
    """Fits A decode(z) to y for each row, A linear, by at most `steps` non-linear conjugate gradients from z (B, *Z).

    With `limit` (B,) a row stops where ||y - A decode(z)|| is that, its last step shortened, so that the iteration itself regularises
    (Hanke, "Conjugate gradient type methods for ill-posed problems", 1995, section 3), or where ten steps gain less than 2 %. With
    `rho` instead it goes to argmin_z ||y - A decode(z)||^2 / (2 sigma^2) + ||z - z_start||^2 / (2 rho^2).

    Polak and Ribiere's directions, restarted where they are of no use. The length of a step is that of a least-squares problem
    along it, whose slope is a secant over the length of the step before: one more pass through decode, without gradient. Where
    decode is affine, secants are exact and this is CGLS.
    """
    problem = _LeastSquares(likelihood, decode, z, 0.0 if rho is None else (likelihood.sigma / rho) ** 2, limit)
    at = problem.look(z)
    p, done = at.down, problem.arrived(at)
    floor = (100 * torch.finfo(z.dtype).eps) ** 2 * _inner(at.down, at.down)
    # The first secant: a root mean square of 0.1, for codes of unit variance.
    length = torch.full_like(at.cost, 0.1 * math.sqrt(z[0].numel()))
    before, gain = at.cost.new_full((10, len(z)), math.inf), 1.0 if limit is None else 0.96
    for k in range(steps):
        if bool(done.all()):
            break
        a = length / _inner(p, p).sqrt().clamp_min(torch.finfo(z.dtype).tiny)
        step = problem.step(at, p, a)
        new = problem.look(torch.addcmul(at.z, _column(step, p), p))
        better = (new.cost < at.cost) & ~done
        beta = _inner(new.down, new.down - at.down).clamp_min(0) / _inner(at.down, at.down).clamp_min(torch.finfo(z.dtype).tiny)
        turned = torch.addcmul(new.down, _column(beta, p), p)
        length = step * _inner(p, p).sqrt() * torch.where(better, 1.0, 0.125)
        # Where the step was no better: down the gradient from the same point, with a shorter secant.
        p = torch.where(_column(better, p), turned, at.down)
        at = _Place(*(torch.where(_column(better, v), v, w) for v, w in zip(new, at, strict=True)))
        done = done | problem.arrived(at) | (_inner(at.down, at.down) <= floor) | (at.cost >= gain * before[k % 10])
        before[k % 10] = at.cost
    return at.z


class _Place(NamedTuple):
    """A point, its residual, what leads down, and the objective."""

    z: Tensor
    r: Tensor
    down: Tensor
    cost: Tensor


class _LeastSquares:
    """||y - A decode(z)||^2 + damping ||z - centre||^2 of each row."""

    def __init__(self, likelihood: GaussianLikelihood, decode: Map, centre: Tensor, damping: float, limit: Tensor | None):
        self.likelihood, self.decode, self.centre, self.damping, self.limit = likelihood, decode, centre, damping, limit

    def look(self, z: Tensor) -> _Place:
        image, pull = pulled(self.decode, z)
        r, off = self.likelihood.residual(image), z - self.centre
        down = torch.sub(pull(self.likelihood.operator.A_adjoint(r)), off, alpha=self.damping)
        return _Place(z, r, down, _inner(r, r) + self.damping * _inner(off, off))

    def arrived(self, at: _Place) -> Tensor:
        """Where the residual is no larger than the limit, (B,)."""
        if self.limit is None:
            return torch.zeros_like(at.cost, dtype=torch.bool)
        return at.cost <= (self.limit * _NEAR).square()

    def step(self, at: _Place, p: Tensor, a: Tensor) -> Tensor:
        """The best length of a step along p, by the secant from z to z + a p; no longer than what takes the residual to the limit."""
        q = (at.r - self.likelihood.residual(self.decode(torch.addcmul(at.z, _column(a, p), p)))) / _column(a, at.r)
        qq, b = _inner(q, q), _inner(at.r, q) - self.damping * _inner(at.z - self.centre, p)
        tiny = torch.finfo(qq.dtype).tiny
        best = b / (qq + self.damping * _inner(p, p)).clamp_min(tiny)
        if self.limit is not None:
            root = b.square() - qq * (at.cost - self.limit.square())
            short = (b - root.clamp_min(0).sqrt()) / qq.clamp_min(tiny)
            best = torch.where((root >= 0) & (short < best), short, best)
        return torch.where(b > 0, best, a / 8)


def nearest(likelihood: GaussianLikelihood, v: Tensor, limit: Tensor, widest: float = 1.0, steps: int = 200) -> Tensor:
    """An image near v (B, *X) with ||y - A x|| = limit (B,), A linear; v itself where that is so already.

    Where the operator has a prox in closed form, that of Tikhonov (`morozov`); else the path of conjugate gradients from v.
    """
    if getattr(likelihood.operator, "closed_form", False):
        return morozov(likelihood, v, limit, widest)
    return conjugate_gradients(likelihood, lambda x: x, v, limit=limit, steps=steps)


def morozov(likelihood: GaussianLikelihood, v: Tensor, limit: Tensor, widest: float, iterations: int = 8) -> Tensor:
    """prox(v, rho) (B, *X) with the smallest rho of each row for which ||y - A prox|| is at most `limit` (B,).

    Morozov's discrepancy principle. 1/||y - A prox|| is concave in gamma = rho^2 / sigma^2 (a power mean of order -2 of the affine
    1 + gamma s_i^2, s_i the singular values), so Newton's method from gamma = 0 rises to the root without ever passing it.
    Two solves an iteration. gamma stays below (widest / limit)^2 m, so that a y that no x explains is not chased for ever.
    """
    operator, y = likelihood.operator, likelihood.y
    most = (widest / limit).square() * likelihood.measured
    gamma, x = torch.zeros_like(limit.expand(len(v))), v
    for k in range(iterations + 1):
        r = y - operator.A(x)
        size = _inner(r, r).sqrt()
        far = size > limit * _NEAR
        if k == iterations or not bool(far.any()):
            break
        back = operator.A_adjoint(r)
        w = back if k == 0 else operator.prox_l2(back, torch.zeros_like(y), gamma)
        slope = _inner(back, w) / size**3
        gain = (1 / limit - 1 / size) / slope.clamp_min(torch.finfo(slope.dtype).tiny)
        gamma = torch.where(far, torch.minimum(gamma + gain, most), gamma)
        x = operator.prox_l2(v, y, gamma)
    return x
