"""Laws that every operator obeys, measured on random signals."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from operators.base import LinearOperator, Operator
from operators.streams import generator


class Law(NamedTuple):
    """One law: its name, the measured error (0 is perfect), the bound it is held against, and whether it holds."""

    name: str
    value: float
    bound: float
    passed: bool


class _Probe:
    """Random signals and measurements for one operator, precision and device."""

    def __init__(self, op: Operator, dtype: torch.dtype, batch: int, seed: int) -> None:
        self.op, self.dtype, self.batch = op, dtype, batch
        self.rng = generator(seed, "laws")
        self.device = next((b.device for b in op.buffers()), torch.device("cpu"))
        self.exact = 1e-12 if dtype == torch.float64 else 1e-5
        self.solve = 1e-8 if dtype == torch.float64 else 1e-4
        if op.image_shape is None:
            raise ValueError("the laws need an operator whose image_shape is known")
        with torch.no_grad():
            self.y_shape = op.A(self.x()).shape

    def _randn(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.rng, dtype=torch.float64).to(self.device, self.dtype)

    def x(self) -> Tensor:
        return self._randn((self.batch, *self.op.image_shape))

    def y(self) -> Tensor:
        return self._randn(self.y_shape)


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.detach()))


def _error(a: Tensor, b: Tensor, scale: float | None = None) -> float:
    if a.shape != b.shape:
        return float("inf")
    size = max(_norm(a), _norm(b)) if scale is None else scale
    return _norm(a - b) / (size or 1.0)


def _common(p: _Probe) -> Iterator[tuple[str, float, float]]:
    op, x = p.op, p.x()
    y = op.A(x)
    yield "deterministic", _error(op.A(x), y), 0.0
    yield "precision kept", float(y.real.dtype != p.dtype), 0.0
    alone = torch.cat([op.select(torch.tensor([b])).A(x[b : b + 1]) for b in range(p.batch)])
    yield "batch independent", _error(alone, y), p.exact
    yield "restrict is a projection", _error(op.restrict(op.restrict(y)), op.restrict(y)), 0.0
    yield "A gives measured entries only", _error(op.restrict(y), y), 0.0
    hidden = (op.restrict(torch.ones_like(y)) == 0).flatten(1).sum(1)
    yield "measured counts", float((hidden + op.measured - y[0].numel()).abs().max()), 0.0
    row = op.select(torch.arange(p.batch)[-1:]).measure(x[-1:], ids=[p.batch - 1])
    yield "noise of a sample is its own", _error(op.measure(x)[-1:], row), p.exact
    picture = op.view(y)
    fine = picture.ndim == 4 and picture.shape[:1] == x.shape[:1] and picture.shape[1] in (1, 3)
    yield "view is a picture in [-1, 1]", max(0.0, float(picture.abs().max()) - 1) if fine else float("inf"), 0.0


def _copies(p: _Probe) -> Iterator[tuple[str, float, float]]:
    op, x = p.op, p.x()
    y = op.A(x)
    yield "deepcopy", _error(copy.deepcopy(op).A(x), y), 0.0
    buffer = io.BytesIO()
    torch.save(op.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(op)
    for b in other.buffers():
        b.zero_()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    yield "state dict round trip", _error(other.A(x), y), 0.0
    if op.picklable:
        yield "pickle round trip", _error(pickle.loads(pickle.dumps(op)).A(x), y), 0.0
    if p.dtype == torch.float64:
        yield "survives .to(float32), .double()", _error(copy.deepcopy(op).to(torch.float32).double().A(x), y), 1e-12


def _gradients(p: _Probe) -> Iterator[tuple[str, float, float]]:
    op, x, v = p.op, p.x().requires_grad_(), p.y()
    (pulled,) = torch.autograd.grad(op.A(x), x, v)
    yield "A_vjp is autograd's", _error(op.A_vjp(x.detach(), v), pulled), p.exact
    if op.linear:
        return
    d = p.x()
    # The optimal step balances truncation h^2 against rounding eps / h.
    h = torch.finfo(p.dtype).eps ** (1 / 3)
    at = x.detach()
    slope = (op.A(at + h * d) - op.A(at - h * d)) / (2 * h)
    yield "A_vjp is the derivative", abs(float((slope * v).sum() - (d * pulled).sum())) / (_norm(slope) * _norm(v)), 100 * h * h


def _linear(p: _Probe, op: LinearOperator) -> Iterator[tuple[str, float, float]]:
    x, w, v = p.x(), p.x(), p.y()
    y = op.A(x)
    yield "linear", _error(op.A(2.0 * x - 0.5 * w), 2.0 * y - 0.5 * op.A(w)), p.exact
    back = op.A_adjoint(v)
    yield "adjoint", abs(float((y * v).sum() - (x * back).sum())) / (_norm(y) * _norm(v)), p.exact
    u = v.clone().requires_grad_()
    (grad,) = torch.autograd.grad(op.A_adjoint(u), u, w)
    yield "gradient of A_adjoint is A", _error(grad, op.A(w)), p.exact
    for gamma in (0.3, 40.0):
        for name, g in (("", gamma), (" per sample", torch.linspace(gamma, 2 * gamma, p.batch, dtype=p.dtype).to(v.device))):
            weight = g.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(g, Tensor) else g
            best = op.prox_l2(w, v, g)
            slope = weight * op.A_adjoint(op.A(best) - v) + best - w
            yield f"prox is stationary, gamma={gamma}{name}", _norm(slope) / (_norm(weight * back) + _norm(w)), p.solve
    alone = torch.cat([op.select(torch.tensor([b])).prox_l2(w[b : b + 1], v[b : b + 1], 3.0) for b in range(p.batch)])
    yield "prox is batch independent", _error(op.prox_l2(w, v, 3.0), alone), p.exact
    z = w.clone().requires_grad_()
    (grad,) = torch.autograd.grad(op.prox_l2(z, v, 3.0), z, x)
    yield "gradient of prox is symmetric", _error(grad, op.prox_l2(x, torch.zeros_like(v), 3.0)), p.solve
    inverse = op.A_dagger(y)
    # Iterative inverses stop at a residual of A^T A; singular values near its square root are then not resolved.
    loose = 1e-3 if p.dtype == torch.float64 else 3e-2
    yield "A A^+ A = A", _error(op.A(inverse), y), p.solve if op.closed_form_inverse else loose


def check(op: Operator, dtype: torch.dtype = torch.float64, batch: int = 2, seed: int = 0) -> list[Law]:
    """Measure every law on `op`, with random signals of precision `dtype` (float32 or float64) and batch size `batch`.

    Covers, for every operator: determinism, precision, batch independence (also of the noise), `restrict` and `measured`,
    `view`, copies, state dict and pickle round trips, and A_vjp against autograd. Linear ones: linearity, the dot-product
    test of the adjoint, stationarity of the prox, and A A^+ A = A. Others: A_vjp against a finite difference. Errors are
    relative; bounds are 1e-12 (float64) or 1e-5 (float32), and 1e-8 or 1e-4 for solves. A RuntimeError on the
    way becomes a failed law of value inf in place of the laws that would have followed in its group.

    Raises ValueError if op.image_shape is unknown. Source: the dot-product test, Claerbout, Earth Soundings Analysis, ch. 5.
    """
    p = _Probe(op, dtype, batch, seed)
    groups = [_common(p), _copies(p), _gradients(p)]
    if isinstance(op, LinearOperator):
        groups.append(_linear(p, op))
    laws: list[Law] = []
    with torch.enable_grad():
        for group in groups:
            try:
                for name, value, bound in group:
                    laws.append(Law(name, value, bound, value <= bound))
            except RuntimeError as error:
                # A wrong adjoint also makes conjugate gradients fail; the laws measured before must still be reported.
                laws.append(Law(f"raised {error}", float("inf"), 0.0, False))
    return laws
