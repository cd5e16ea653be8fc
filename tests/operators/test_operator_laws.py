"""Every law over one list of operators. A new operator is one line in operator_cases and inherits every test here."""

import math
from collections.abc import Callable
from pathlib import Path

import deepinv.physics as dinv
import numpy as np
import pytest
import torch
from operator_cases import BATCHES, CASES, rand
from torch import Tensor

from operators import Blur, Identity, Inpainting, LinearOperator, Matrix, Operator, as_operator, check
from operators.core.base import LinearOperator as Base


class Tone(Operator):
    """A non-linear operator of few lines, also the smallest example of a new one."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__(image_shape, image_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + 0.1 * x**2


class Gradient(LinearOperator):
    """Horizontal differences, circular: linear, without a closed form here, so conjugate gradients are used."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__(image_shape, image_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return x - x.roll(1, -1)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y - y.roll(-1, -1)


OPERATORS: dict[str, Callable[[], Operator]] = {
    **CASES,
    "gradient by CG": lambda: Gradient((1, 6, 7)),
    "non-linear": lambda: Tone((3, 5, 6)),
}
LINEAR = [name for name, build in OPERATORS.items() if build().linear]
CASES = [(name, batch) for name in OPERATORS for batch in BATCHES.get(name, (1, 3))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_laws(name: str, batch: int, dtype: torch.dtype) -> None:
    laws = check(OPERATORS[name](), dtype, batch)
    assert len(laws) >= 12
    assert [law for law in laws if not law.passed] == []


def dense(op: Operator) -> Tensor:
    """A of one sample as a matrix (m, n), by probing with unit vectors."""
    n = math.prod(op.image_shape)
    one = op.select(torch.tensor([0]))
    columns = torch.eye(n, dtype=torch.float64).reshape(n, 1, *op.image_shape)
    return torch.stack([real(one.A(column)) for column in columns], dim=1)


def real(y: Tensor) -> Tensor:
    """The entries of one measurement as a vector, complex ones as their two parts."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten()


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("gamma", [0.2, 25.0])
def test_prox_and_inverse_equal_dense_algebra(name: str, gamma: float) -> None:
    op = OPERATORS[name]().select(torch.tensor([0]))
    assert isinstance(op, Base)
    A = dense(op)
    z, y = rand(1, *op.image_shape), rand(1, *op.measurement_shape)
    if op.A(z).is_complex():
        y = torch.complex(y, y.flip(-1))
    system = torch.eye(A.shape[1], dtype=torch.float64) + gamma * A.T @ A
    expected = torch.linalg.solve(system, z.flatten() + gamma * A.T @ real(y))
    assert (op.prox_l2(z, y, gamma).flatten() - expected).norm() < 1e-8 * expected.norm()
    assert (op.A_adjoint(y).flatten() - A.T @ real(y)).norm() < 1e-12 * (A.norm() * y.norm())
    if op.closed_form_inverse:
        inverse = torch.linalg.pinv(A, rtol=1e-10) @ real(y)
        assert (op.A_dagger(y).flatten() - inverse).norm() < 1e-6 * inverse.norm()


class Broken(Gradient):
    def _adjoint(self, y: Tensor) -> Tensor:
        return y - y.roll(1, -1)


class Coupled(Gradient):
    def _forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Affine(Identity):
    def _forward(self, x: Tensor) -> Tensor:
        return x + 1


class Leaky(Inpainting):
    def restrict(self, y: Tensor) -> Tensor:
        return y


class SloppyProx(Identity):
    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        return super()._prox(z, y, 1.001 * gamma)


class WrongJacobian(Tone):
    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return 1.001 * super().A_vjp(x, v)


@pytest.mark.parametrize(
    ("op", "law"),
    [
        (Broken((1, 4, 5)), "adjoint"),
        (Coupled((1, 4, 5)), "batch independent"),
        (Affine((1, 4, 5)), "linear"),
        (Leaky((1, 4, 5)), "measured counts"),
        (SloppyProx((1, 4, 5)), "prox is stationary, gamma=0.3"),
        (WrongJacobian((1, 4, 5)), "A_vjp is autograd's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_operator_is_caught(op: Operator, law: str) -> None:
    assert law in [entry.name for entry in check(op) if not entry.passed]


def test_laws_need_a_known_shape() -> None:
    with pytest.raises(ValueError, match="image_shape"):
        check(as_operator(dinv.Blur(torch.ones(1, 1, 3, 3), padding="circular")))


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_matrix_from_a_file(tmp_path: Path, suffix: str) -> None:
    A = rand(4, 6)
    path = tmp_path / f"A{suffix}"
    np.save(path, A.numpy()) if suffix == ".npy" else torch.save(A, path)
    assert torch.equal(dense(Matrix(str(path), (1, 2, 3))), A)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "zero", "valid"])
def test_a_solve_that_is_not_reached_breaks_no_law(boundary: str) -> None:
    """A wide Gaussian has singular values far below what conjugate gradients resolve; that is told, by name, with the residual."""
    op = Blur((1, 16, 16), kernel="gaussian", std=1.0, boundary=boundary)
    op.max_iter = 20
    laws = check(op)
    assert [law for law in laws if not law.passed] == []
    told = [law for law in laws if "not reached" in law.note]
    assert bool(told) is not op.closed_form_inverse
    assert all("relative residual" in law.note and math.isnan(law.value) for law in told)


def test_conjugate_gradients_that_fail_for_a_wrong_adjoint_are_no_excuse() -> None:
    laws = check(Broken((1, 6, 7)))
    assert "adjoint" in [law.name for law in laws if not law.passed]
