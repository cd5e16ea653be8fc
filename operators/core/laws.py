"""Laws that every operator obeys, measured on random signals."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from operators.core.base import LinearOperator, Operator
from operators.core.solve import NotConverged
from operators.core.streams import generator


class Law(NamedTuple):
    """One law: its name, the measured error (0 is perfect), the bound it is held against, and whether it holds.

    A bound of infinity marks a number that is only told, such as the norm; `note` says why a law was skipped (value NaN).
    """

    name: str
    value: float
    bound: float
    passed: bool
    note: str = ""


_DEVICES = "same on CPU and CUDA"


class _Probe:
    """Random signals and measurements for one operator, precision and device."""

    def __init__(self, op: Operator, dtype: torch.dtype, batch: int, seed: int) -> None:
        self.op: Any = op if op.ids else op.for_ids(range(batch))
        self.dtype, self.batch = dtype, batch
        self.rng = generator(seed, "laws")
        self.device = next((t.device for t in itertools.chain(op.buffers(), op.parameters())), torch.device("cpu"))
        self.exact = 1e-12 if dtype == torch.float64 else 1e-5
        self.solve = 1e-8 if dtype == torch.float64 else 1e-4
        if op.image_shape is None:
            raise ValueError("the laws need an operator whose image_shape is known")
        with torch.no_grad():
            y = self.op.A(self.x())
        self.y_shape, self.y_complex = y.shape, y.is_complex()

    def _randn(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.rng, dtype=torch.float64).to(self.device, self.dtype)

    def x(self) -> Tensor:
        return self._randn((self.batch, *self.op.image_shape))

    def y(self) -> Tensor:
        return torch.complex(self._randn(self.y_shape), self._randn(self.y_shape)) if self.y_complex else self._randn(self.y_shape)


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.detach()))


def _inner(a: Tensor, b: Tensor) -> float:
    """The real inner product, in which A^T is the adjoint of A also where measurements are complex."""
    return float((a.conj() * b).real.detach().sum())


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
    measured = torch.tensor([op.select(torch.tensor([b])).measured for b in range(p.batch)], device=hidden.device)
    yield "measured counts", float((hidden + measured - y[0].numel()).abs().max()), 0.0
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
    slope = (op.surrogate(at + h * d) - op.surrogate(at - h * d)) / (2 * h)
    name = "A_vjp is the derivative of the surrogate, not of A" if op.straight_through else "A_vjp is the derivative"
    yield name, abs(_inner(slope, v) - _inner(d, pulled)) / ((_norm(slope) or 1.0) * _norm(v)), 100 * h * h


# A law: name, error, bound, and where it could not be measured why.
_Measured = tuple[str, float, float, str]


def _solved(name: str, bound: float, error: Callable[[], float]) -> _Measured:
    """The error of a law of solves. One that conjugate gradients do not reach is not broken; a wrong adjoint, for which they may
    fail as well, has its own law."""
    try:
        return name, error(), bound, ""
    except NotConverged as refusal:
        return name, math.nan, math.inf, f"not reached, as the condition of the operator is too bad: {str(refusal).partition(';')[0]}"


def _linear(p: _Probe, op: LinearOperator) -> Iterator[_Measured]:
    x, w, v = p.x(), p.x(), p.y()
    y = op.A(x)
    yield "linear", _error(op.A(2.0 * x - 0.5 * w), 2.0 * y - 0.5 * op.A(w)), p.exact, ""
    back = op.A_adjoint(v)
    yield "adjoint", abs(_inner(y, v) - _inner(x, back)) / ((_norm(y) * _norm(v)) or 1.0), p.exact, ""
    u = v.clone().requires_grad_()
    (grad,) = torch.autograd.grad(op.A_adjoint(u), u, w)
    yield "gradient of A_adjoint is A", _error(grad, op.A(w)), p.exact, ""

    def slope(g: float | Tensor) -> float:
        weight = g.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(g, Tensor) else g
        best = op.prox_l2(w, v, g)
        return _norm(weight * op.A_adjoint(op.A(best) - v) + best - w) / (_norm(weight * back) + _norm(w))

    for gamma in (0.3, 40.0):
        spread = torch.linspace(gamma, 2 * gamma, p.batch, dtype=p.dtype).to(v.device)
        yield _solved(f"prox is stationary, gamma={gamma}", p.solve, lambda g=gamma: slope(g))  # type: ignore[misc]
        yield _solved(f"prox is stationary, gamma={gamma} per sample", p.solve, lambda g=spread: slope(g))  # type: ignore[misc]

    def alone() -> float:
        each = [op.select(torch.tensor([b])).prox_l2(w[b : b + 1], v[b : b + 1], 3.0) for b in range(p.batch)]
        return _error(op.prox_l2(w, v, 3.0), torch.cat(each))

    def symmetric() -> float:
        z = w.clone().requires_grad_()
        (grad,) = torch.autograd.grad(op.prox_l2(z, v, 3.0), z, x)
        return _error(grad, op.prox_l2(x, torch.zeros_like(v), 3.0))

    yield _solved("prox is batch independent", p.exact, alone)
    yield _solved("gradient of prox is symmetric", p.solve, symmetric)
    # Iterative inverses stop at a residual of A^T A; singular values near its square root are then not resolved.
    loose = 1e-3 if p.dtype == torch.float64 else 3e-2
    yield _solved("A A^+ A = A", p.solve if op.closed_form_inverse else loose, lambda: _error(op.A(op.A_dagger(y)), y))


def norm(op: LinearOperator, iterations: int = 30, seed: int = 0, dtype: torch.dtype = torch.float64) -> float:
    """The largest singular value ||A||, from below, by power iteration on A^T A from a random signal.

    Raises ValueError if op.image_shape is unknown. Source: Golub & Van Loan, Matrix Computations, Sec. 8.2.1.
    """
    p = _Probe(op.select(torch.tensor([0])), dtype, 1, seed)
    op = p.op
    with torch.no_grad():
        x, size = p.x(), 0.0
        for _ in range(iterations):
            x = x / (_norm(x) or 1.0)
            y = op.A(x)
            size = _norm(y)
            x = op.A_adjoint(y)
    return size


def _solves(p: _Probe, op: LinearOperator) -> Iterator[_Measured]:
    size = norm(op, dtype=p.dtype)
    yield "norm of A (for information)", size, math.inf, ""
    if not op.closed_form:
        return
    # A weight at which conjugate gradients converge in a few steps whatever the scale of A.
    w, v, gamma = p.x(), p.y(), 3 / (size**2 or 1.0)
    yield _solved("closed-form prox is that of CG", p.solve, lambda: _error(op.prox_l2(w, v, gamma), LinearOperator._prox(op, w, v, gamma)))


def _devices(p: _Probe) -> Iterator[tuple[str, float, float]]:
    op, x = p.op, p.x()
    other = torch.device("cpu") if p.device.type != "cpu" else torch.device("cuda")
    there = copy.deepcopy(op).to(other).A(x.to(other))
    # Fast transforms on another device round differently; an order of magnitude is left for it.
    yield _DEVICES, _error(there.to(p.device), op.A(x)), 10 * p.exact


def _raised(error: Exception) -> Law:
    return Law(f"raised {type(error).__name__}: {' '.join(str(error).split())}", math.inf, 0.0, False)


def check(op: Operator, dtype: torch.dtype = torch.float64, batch: int = 2, seed: int = 0) -> list[Law]:
    """Measure every law on `op`, with random signals of precision `dtype` (float32 or float64) and batch size `batch`.

    Covers, for every operator: determinism, precision, batch independence (also of the noise), `restrict` and `measured`,
    `view`, copies, state dict and pickle round trips, A_vjp against autograd, and CPU against CUDA where there is one. Linear
    ones: linearity, the dot-product test of the adjoint, the norm (told, not judged), stationarity of the prox, a closed-form
    prox against conjugate gradients, and A A^+ A = A. Others: A_vjp against a finite difference (of `surrogate`, where it is
    straight-through). Operators with parameters per sample are bound to the ids 0..batch-1. Errors are relative; bounds are
    1e-12 (float64) or 1e-5 (float32), and 1e-8 or 1e-4 for solves. Measurements may be complex; inner products are real
    parts. A solve that conjugate gradients do not reach, as A is too ill-conditioned, is told and breaks no law. Any other
    exception becomes a failed law of value inf in place of those that would have followed in its group.

    Raises ValueError if op.image_shape is unknown. Source: the dot-product test, Claerbout, Earth Soundings Analysis, ch. 5.
    """
    if op.image_shape is None:
        raise ValueError("the laws need an operator whose image_shape is known")
    try:
        p = _Probe(op, dtype, batch, seed)
    except Exception as error:  # noqa: BLE001
        return [_raised(error)]
    groups: list[Iterator[Any]] = [_common(p), _copies(p), _gradients(p)]
    if isinstance(p.op, LinearOperator):
        groups += [_linear(p, p.op), _solves(p, p.op)]
    laws: list[Law] = []
    if torch.cuda.is_available():
        groups.append(_devices(p))
    with torch.enable_grad():
        for group in groups:
            try:
                for name, value, bound, *note in group:
                    laws.append(Law(name, value, bound, value <= bound or any(note), "".join(note)))
            except Exception as error:  # noqa: BLE001
                # A user's operator may raise anything, and a wrong adjoint makes conjugate gradients fail; the laws measured
                # before must still be reported, and this failure among them.
                laws.append(_raised(error))
    if not torch.cuda.is_available():
        laws.append(Law(_DEVICES, math.nan, math.inf, True, "skipped, as there is no CUDA here"))
    return laws


@dataclass(frozen=True)
class Report:
    """The laws of one operator in several precisions and batch sizes; `str` of it is a table.

    `runs` maps (dtype, batch) to the laws measured there (columns such as "float32 x3"); `heading` says what the operator is.
    """

    heading: str
    runs: dict[tuple[torch.dtype, int], list[Law]]

    @property
    def passed(self) -> bool:
        """Whether every law holds in every run."""
        return all(law.passed for laws in self.runs.values() for law in laws)

    @property
    def broken(self) -> list[str]:
        """The names of the laws that fail in some run."""
        return list(dict.fromkeys(law.name for laws in self.runs.values() for law in laws if not law.passed))

    def __str__(self) -> str:
        names = list(dict.fromkeys(law.name for laws in self.runs.values() for law in laws))
        table = [["law", *map(_label, self.runs), "bounds"]]
        for name in names:
            found = [next((law for law in laws if law.name == name), None) for laws in self.runs.values()]
            bounds = dict.fromkeys(f"{law.bound:.0e}" if law.bound else "0" for law in found if law is not None and law.bound < math.inf)
            table.append([name, *map(_cell, found), ", ".join(bounds)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        notes = dict.fromkeys(f"{law.name}: {law.note}" for laws in self.runs.values() for law in laws if law.note)
        verdict = "all laws hold" if self.passed else f"broken ({len(self.broken)} of {len(names)}): {'; '.join(self.broken)}"
        return "\n".join([self.heading, "", *lines, "", *notes, verdict])


def _label(run: tuple[torch.dtype, int]) -> str:
    return f"{str(run[0]).removeprefix('torch.')} x{run[1]}"


def _cell(law: Law | None) -> str:
    if law is None or law.note:
        return "-"
    if law.bound == math.inf:
        return f"{law.value:.4g}"
    return (f"{law.value:.1e}" if law.value else "0") + ("" if law.passed else " FAIL")


def _heading(op: Operator) -> str:
    kind = "linear" if op.linear else "not linear"
    if op.straight_through:
        kind += ", with a straight-through A_vjp that is not its derivative"
    if isinstance(op, LinearOperator):
        solved = [("prox", op.closed_form), ("pseudo-inverse", op.closed_form_inverse)]
        kind += ", " + ", ".join(f"{name} {'in closed form' if closed else 'by conjugate gradients'}" for name, closed in solved)
    return f"{type(op).__name__}: {tuple(op.image_shape)} -> {op.measurement_shape}, {kind}"


def report(
    op: Operator, dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32), batches: Sequence[int] = (1, 3), seed: int = 0
) -> Report:
    """`check` in every one of `dtypes` with every batch size of `batches`; print it for a table, ask `.passed` for the verdict.

    Raises ValueError if op.image_shape is unknown.
    """
    if op.image_shape is None:
        raise ValueError("the laws need an operator whose image_shape is known")
    runs = {(dtype, batch): check(op, dtype, batch, seed) for dtype in dtypes for batch in batches}
    return Report(_heading(op), runs)
