"""Operators from functions, networks and files of the user's own."""

import functools
import pickle
from pathlib import Path
from typing import Any

import deepinv.physics as dinv
import numpy as np
import pytest
import torch
from operator_cases import rand
from operator_cases.compose import Doubled, differences, spectrum, tone
from torch import Tensor, nn

from operators import GaussianBlur, LinearOperator, NetworkOperator, Operator, check, custom_operator, from_callable


def test_a_function_is_differentiated_by_autograd() -> None:
    op = from_callable(tone, (3, 5, 6))
    x, v = rand(2, 3, 5, 6), rand(2, 3, 5, 6)
    assert not op.linear
    assert torch.equal(op.A(x), tone(x))
    assert torch.allclose(op.A_vjp(x, v), (1 - torch.tanh(x) ** 2 + 0.2 * x) * v, atol=1e-15)
    assert torch.autograd.gradcheck(op.A, rand(1, 3, 5, 6).requires_grad_())


def test_the_derived_adjoint_is_the_transpose() -> None:
    op = from_callable(differences, (1, 1, 5), linear=True)
    A = np.diff(np.eye(5), axis=1).T
    y = rand(3, 1, 1, 4)
    assert isinstance(op, LinearOperator)
    assert op.measurement_shape == (1, 1, 4)
    assert np.abs(op.A_adjoint(y).numpy().reshape(3, 5) - y.numpy().reshape(3, 4) @ A).max() < 1e-15
    with torch.inference_mode():
        assert torch.equal(op.A_adjoint(y), op.A_adjoint(y.clone()))
        assert op.A_adjoint(y).abs().sum() > 0


def test_a_complex_measurement_has_the_adjoint_of_the_real_inner_product() -> None:
    op = from_callable(spectrum, (1, 5, 6), linear=True)
    assert isinstance(op, LinearOperator)
    x, y = rand(1, 1, 5, 6), torch.complex(rand(1, 1, 5, 4), rand(1, 1, 5, 4).flip(-1))
    assert float((op.A(x).conj() * y).real.sum()) == pytest.approx(float((x * op.A_adjoint(y)).sum()), rel=1e-13)
    # A real y is one whose imaginary part is zero.
    assert torch.equal(op.A_adjoint(y.real), op.A_adjoint(torch.complex(y.real, torch.zeros_like(y.real))))


def half_wave(x: Tensor) -> Tensor:
    return x.relu()


def shifted(x: Tensor) -> Tensor:
    return x + 1e-3


def saturated(x: Tensor) -> Tensor:
    return x.clamp(-50, 50)


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * 2.0)


def half_detached(x: Tensor) -> Tensor:
    return x + x.roll(1, -1).detach()


def nan(x: Tensor) -> Tensor:
    return x * torch.nan


@pytest.mark.parametrize("fn", [half_wave, shifted, saturated, tone, nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_linear_is_refused(fn: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"not linear: relative errors .* leave out linear=True"):
        from_callable(fn, (1, 8, 8), linear=True, dtype=dtype)


@pytest.mark.parametrize("fn", [through_numpy, half_detached])
def test_what_autograd_cannot_see_is_refused(fn: Any) -> None:
    with pytest.raises(ValueError, match="autograd"):
        from_callable(fn, (1, 8, 8), linear=True)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.numpy(), "gave a ndarray; a tensor"),
        (lambda x: x.sum(), r"gave \(\) for a batch of 1"),
        (lambda x: x[0], r"gave \(3, 4, 4\) for a batch of 1"),
        (lambda x: x.flatten(1).sum(1), r"gave \(1,\) for a batch of 1"),
    ],
)
def test_what_is_no_measurement_is_refused(fn: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_callable(fn, (3, 4, 4))


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="got int"):
        from_callable(3, (1, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch.nn.Module, got function.*from_callable"):
        NetworkOperator((1, 4, 4), tone)  # type: ignore[arg-type]


class Noisy(nn.Module):
    """A network whose training mode is random and coupled over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


def test_a_network_is_copied_frozen_and_in_evaluation_mode() -> None:
    network = Noisy().train()
    op = NetworkOperator((2, 4, 4), network)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in op.parameters())
    x = rand(3, 2, 4, 4).float()
    before = op.A(x)
    with torch.no_grad():
        network.body[0].weight.zero_()
    assert torch.equal(op.A(x), before)
    assert [law for law in check(op) if not law.passed] == []


def test_a_network_keeps_its_precision_and_takes_that_of_the_input() -> None:
    op, x = NetworkOperator((2, 4, 4), Doubled()), rand(1, 2, 4, 4)
    expected = Doubled().eval().double()(x)
    op.to(torch.float64)
    assert op.network.up.weight.dtype == torch.float32
    assert op.A(x).dtype == torch.float64
    assert torch.allclose(op.A(x), expected, atol=1e-7)
    assert op.A(x.float()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op.A(x.float()), op.A(x.float()))
        assert op.A(x.float()).dtype == torch.float32
    assert op.to("meta").network.up.weight.device.type == "meta"


def test_derived_adjoints_inside_vmap() -> None:
    linear = from_callable(differences, (1, 5, 6), linear=True)
    assert isinstance(linear, LinearOperator)
    v = rand(2, 1, 5, 5)
    assert torch.allclose(torch.func.vmap(lambda u: linear.A_adjoint(u[None])[0])(v), linear.A_adjoint(v))


class Older(torch.autograd.Function):
    """Sums over the last axis, as projectors are often wrapped: no setup_context, through numpy, not differentiable twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shape = x.shape
        return torch.from_numpy(x.detach().numpy().sum(-1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(g.numpy())[..., None].expand(ctx.shape).clone()


def older(x: Tensor) -> Tensor:
    result: Tensor = Older.apply(x)
    return result


@pytest.mark.parametrize("linear", [True, False])
def test_older_autograd_functions_obey_every_law(linear: bool) -> None:
    op, x = from_callable(older, (1, 5, 6), linear=linear), rand(2, 1, 5, 6)
    assert [law for law in check(op) if not law.passed] == []
    v = rand(2, 1, 5)
    with torch.inference_mode():
        assert torch.equal(op.A_vjp(x, v), v[..., None].expand(x.shape))
    # The derivative of what is composed with it, as a guided sampler takes it.
    u = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(op.A(u.sin()).square().sum(), u)
    assert torch.allclose(slope, 2 * op.A(x.sin())[..., None] * x.cos())


class Gain:
    """A callable object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * x

    def method(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize(
    ("fn", "picklable"),
    [
        (tone, True), (torch.sin, True), (Gain(2.0), True), (Gain(2.0).method, True), (functools.partial(torch.add, other=1.0), True),
        (lambda x: x, False), (functools.partial(lambda x, k: k * x, k=2.0), False),
    ],
)  # fmt: skip
def test_whether_it_can_be_pickled_is_known(fn: Any, picklable: bool) -> None:
    op = from_callable(fn, (1, 4, 4))
    assert op.picklable is picklable
    if picklable:
        assert torch.equal(pickle.loads(pickle.dumps(op)).A(rand(1, 1, 4, 4)), fn(rand(1, 1, 4, 4)))
    assert [law for law in check(op) if not law.passed] == []


MINE = '''
import torch
from deepinv.physics import Inpainting
from operators import GaussianBlur, LinearOperator, from_callable

def make(image_shape, gain: float = 1.0, power: int = 1):
    return from_callable(lambda x: gain * x**power, image_shape, linear=power == 1)

class Blur(GaussianBlur):
    """A class works as a factory too."""

def physics(image_shape):
    return Inpainting(image_shape, mask=0.5)

def function(image_shape):
    return lambda x: x

def other_shape(image_shape):
    return GaussianBlur((1, 4, 4), 1.0)

def broken(image_shape):
    return image_shape.nothing

def picky(image_shape, size: int):
    raise ValueError(f"size must be 1, got {size}")

constant = 3
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


def test_an_operator_from_a_file(mine: str) -> None:
    x = rand(1, 3, 8, 8)
    op = custom_operator((3, 8, 8), f"{mine}:make", gain=2.0)
    assert op.linear
    assert torch.equal(op.A(x), 2 * x)
    assert not custom_operator((3, 8, 8), f"{mine}:make", power=3).linear
    blur = custom_operator((3, 8, 8), f"{mine}:Blur", std=0.8)
    assert torch.equal(blur.A(x), GaussianBlur((3, 8, 8), 0.8).A(x))
    assert torch.equal(pickle.loads(pickle.dumps(blur)).A(x), blur.A(x))
    assert isinstance(custom_operator((3, 8, 8), f"{mine}:physics"), Operator)
    assert torch.equal(custom_operator((3, 8, 8), "operators.blur.blur:GaussianBlur", std=0.8).A(x), blur.A(x))


def test_a_changed_file_is_read_again(mine: str) -> None:
    x = rand(1, 1, 4, 4)
    assert torch.equal(custom_operator((1, 4, 4), f"{mine}:make").A(x), x)
    Path(mine).write_text(MINE.replace("gain: float = 1.0", "gain: float = 3.0"))
    assert torch.equal(custom_operator((1, 4, 4), f"{mine}:make").A(x), 3 * x)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("make", {}, r"package.module:attribute or path/to/file.py:attribute, got 'make'"),
        ("no.py:make", {}, "no such file: no.py"),
        ("no_such_module:make", {}, "ModuleNotFoundError.*written file.py:attribute"),
        ("{mine}:mk", {}, "has no 'mk'; it has: .*make"),
        ("{mine}:make", {"gian": 1.0}, "unexpected keyword argument 'gian'"),
        ("{mine}:constant", {}, "is a int; a function or class"),
        ("{mine}:function", {}, "returned a function.*from_callable"),
        ("{mine}:other_shape", {}, r"for images \(1, 4, 4\), asked for \(3, 8, 8\)"),
        ("{mine}:broken", {}, "raised AttributeError: 'tuple' object has no attribute 'nothing'"),
        ("{mine}:picky", {"size": 2}, "size must be 1, got 2"),
        ("{mine}:picky", {}, "missing a required argument: 'size'"),
    ],
)
def test_targets_that_cannot_serve_are_refused(mine: str, target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        custom_operator((3, 8, 8), target.format(mine=mine), **options)


def test_a_file_that_fails_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"importing .*bad\.py raised ZeroDivisionError: division by zero"):
            custom_operator((3, 8, 8), f"{tmp_path}/bad.py:make")


def test_a_deepinv_physics_may_be_returned_with_its_own_shape(mine: str) -> None:
    assert isinstance(custom_operator((1, 6, 6), f"{mine}:physics").physics, dinv.Inpainting)
