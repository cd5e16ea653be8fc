"""Every law over one list of operators. A new operator is one line in OPERATORS and inherits every test here."""

import math
from collections.abc import Callable
from pathlib import Path

import deepinv.physics as dinv
import numpy as np
import pytest
import torch
from torch import Tensor

from operators import (
    GaussianBlur,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    Operator,
    SuperResolution,
    as_operator,
    check,
    generator,
)
from operators.base import LinearOperator as Base


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(0, "test"), dtype=torch.float64)


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
    "identity": lambda: Identity((1, 5, 6)),
    "identity vector": lambda: Identity((7,)),
    "matrix wide": lambda: Matrix(rand(7, 30) - 0.5, (1, 5, 6)),
    "matrix tall, rank 3": lambda: Matrix((rand(9, 3) - 0.5) @ (rand(3, 5) - 0.5), (5,)),
    "blur circular": lambda: GaussianBlur((3, 8, 8), std=1.0),
    "blur circular, kernel larger than image": lambda: GaussianBlur((1, 5, 8), std=2.0),
    "blur circular, odd": lambda: GaussianBlur((1, 9, 12), std=0.8, taps=61),
    "blur reflect": lambda: GaussianBlur((3, 9, 8), std=1.2, boundary="reflect"),
    "blur reflect, few taps": lambda: GaussianBlur((1, 6, 7), std=10.0, taps=5, boundary="reflect"),
    "box": lambda: Inpainting((3, 8, 9), size=(3, 4), margin=1, seed=2),
    "box grey": lambda: Inpainting((1, 7, 7)),
    "random": lambda: Inpainting((3, 7, 10), kind="random", fraction=0.7),
    "mask tensor": lambda: Inpainting((3, 6, 6), kind="file", mask=rand(6, 6) > 0.5),
    "bicubic": lambda: SuperResolution((3, 16, 12)),
    "bicubic x3 odd": lambda: SuperResolution((1, 15, 9), factor=3),
    "bicubic, one pixel left": lambda: SuperResolution((1, 4, 8), factor=4),
    "average": lambda: SuperResolution((3, 8, 12), kind="average"),
    "average x3": lambda: SuperResolution((1, 9, 15), factor=3, kind="average"),
    "gradient by CG": lambda: Gradient((1, 6, 7)),
    "non-linear": lambda: Tone((3, 5, 6)),
    "deepinv inpainting": lambda: as_operator(dinv.Inpainting((3, 8, 9), mask=(rand(3, 8, 9) > 0.5).float())),
    "deepinv inpainting, mask per sample": lambda: as_operator(
        dinv.Inpainting((1, 4, 4), mask=torch.eye(4).repeat(3, 1, 1)[:, None].roll(1, -1))
    ),
    "deepinv blur fft": lambda: as_operator(dinv.BlurFFT((1, 8, 9), filter=rand(1, 1, 3, 3).float())),
    "deepinv blur reflect": lambda: as_operator(dinv.Blur(rand(1, 1, 3, 3).float() / 5, padding="reflect"), (1, 6, 7)),
    "deepinv downsampling": lambda: as_operator(dinv.Downsampling((1, 16, 16), filter="bilinear", factor=2)),
    "deepinv downsampling, filter larger than image": lambda: as_operator(dinv.Downsampling((1, 8, 8), filter="gaussian", factor=2)),
    "deepinv mri": lambda: as_operator(dinv.MRI(mask=(rand(8, 6) > 0.5).float(), img_size=(8, 6))),
    "deepinv multicoil mri": lambda: as_operator(
        dinv.MultiCoilMRI(mask=(rand(6, 6) > 0.4).float(), coil_maps=torch.complex(rand(3, 6, 6), rand(3, 6, 6)).cfloat(), img_size=(6, 6))
    ),
    "deepinv phase retrieval": lambda: as_operator(
        dinv.PhaseRetrieval(dinv.Blur(rand(1, 1, 3, 3).float() / 5, padding="circular")), (1, 5, 6)
    ),
}
LINEAR = [name for name in OPERATORS if name not in ("non-linear", "deepinv phase retrieval")]
BATCHES = {"deepinv inpainting, mask per sample": (3,)}
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
    return torch.stack([one.A(column).flatten() for column in columns], dim=1)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("gamma", [0.2, 25.0])
def test_prox_and_inverse_equal_dense_algebra(name: str, gamma: float) -> None:
    op = OPERATORS[name]().select(torch.tensor([0]))
    assert isinstance(op, Base)
    A = dense(op)
    z, y = rand(1, *op.image_shape), rand(1, *op.measurement_shape)
    system = torch.eye(A.shape[1], dtype=torch.float64) + gamma * A.T @ A
    expected = torch.linalg.solve(system, z.flatten() + gamma * A.T @ y.flatten())
    assert (op.prox_l2(z, y, gamma).flatten() - expected).norm() < 1e-8 * expected.norm()
    assert (op.A_adjoint(y).flatten() - A.T @ y.flatten()).norm() < 1e-12 * (A.norm() * y.norm())
    if op.closed_form_inverse:
        inverse = torch.linalg.pinv(A, rtol=1e-10) @ y.flatten()
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
