"""Foreign physics through the adapter: whatever deepinv has, against dense algebra, and physics whose claims are wrong."""

import copy
import math
import warnings
from typing import Any

import deepinv.physics as dinv
import pytest
import torch
from operator_cases import rand
from torch import Tensor

from operators import Inpainting, LinearOperator, Operator, as_operator
from operators.core import adapter, claims
from operators.core.adapter import WrappedLinearOperator, WrappedOperator

# Sizes at which the whole matrix is cheap; what is not named keeps deepinv's own.
SIZES: dict[str, tuple[int, ...]] = {
    "CS": (1, 6, 5), "inpainting": (3, 4, 5), "demosaicing": (3, 4, 6), "denoising": (1, 6, 5), "colorize": (3, 5, 4),
    "fftdeblur": (1, 9, 10), "singlepixel": (1, 8, 8), "fast_singlepixel": (1, 8, 8), "fast_singlepixel_cake_cutting": (1, 8, 8),
    "fast_singlepixel_zig_zag": (1, 8, 8), "fast_singlepixel_xy": (1, 8, 8), "deblur_valid": (1, 9, 8), "deblur_circular": (1, 9, 8),
    "deblur_reflect": (1, 9, 8), "deblur_replicate": (1, 9, 8), "deblur_constant": (1, 9, 8), "hyperspectral_unmixing": (15, 2, 2),
    "super_resolution_valid": (1, 8, 10), "super_resolution_circular": (1, 8, 10), "super_resolution_reflect": (1, 8, 10),
    "down_resolution_circular": (1, 8, 6), "down_resolution_reflect": (1, 8, 6), "down_resolution_replicate": (1, 8, 6),
    "down_resolution_constant": (1, 8, 6), "aliased_super_resolution": (1, 8, 8), "MRI": (2, 7, 6), "DynamicMRI": (2, 3, 5, 4),
    "3DMRI": (2, 3, 5, 4), "MultiCoilMRI": (2, 7, 6), "3DMultiCoilMRI": (2, 3, 5, 4), "complex_compressed_sensing": (1, 6, 6),
    "composition": (3, 4, 4), "structured_random": (1, 8, 8), "cassi-ss": (3, 6, 5), "cassi-sd": (3, 6, 5),
    "ptychography_linear": (1, 6, 6), "2DParallelBeamCT": (1, 6, 6), "VirtualLinearPhysics": (3, 4, 4),
}  # fmt: skip


def real(y: Tensor) -> Tensor:
    """Measurements as rows, complex ones as their two parts."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def dense(op: Operator) -> Tensor:
    n = math.prod(op.image_shape)
    return real(op.A(torch.eye(n, dtype=torch.float64).reshape(n, *op.image_shape))).T


def gap(found: Tensor, expected: Tensor) -> float:
    assert not found.is_complex()
    return float((found.flatten(1).T - expected).norm() / expected.norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SIZES)
def test_everything_deepinv_has_equals_dense_algebra(name: str) -> None:
    """Adjoint, prox (at weights of any size, one for all and per sample) and, by what it must satisfy, the pseudo-inverse."""
    tests = pytest.importorskip("deepinv.tests.test_physics")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        physics, size = tests.find_operator(name, "cpu", imsize=SIZES[name])[:2]
    state = torch.random.get_rng_state()
    op = as_operator(physics, size)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(op, LinearOperator)
    stated = as_operator(physics).image_shape
    assert stated in (None, tuple(size))
    A, x = dense(op), rand(2, *size)
    y = op.A(x.flip(0)) + 0.3
    assert gap(op.A_adjoint(y), A.T @ real(y).T) < 1e-10
    unit = float(A.norm() ** 2 / A.shape[1]) ** -1
    for gamma in (0.7 * unit, 20 * unit, torch.tensor([unit, 5 * unit], dtype=torch.float64)):
        each = []
        for b, g in enumerate([gamma, gamma] if isinstance(gamma, float) else gamma.tolist()):
            system = g * A.T @ A + torch.eye(A.shape[1], dtype=torch.float64)
            each.append(torch.linalg.solve(system, g * A.T @ real(y)[b] + x[b].flatten()))
        assert gap(op.prox_l2(x, y, gamma), torch.stack(each, 1)) < 1e-7
    inverse = op.A_dagger(op.A(x))
    assert float((real(op.A(inverse)) - real(op.A(x))).norm()) < 1e-3 * float(op.A(x).norm())
    # No part of it is invisible to A: that would not be of minimal norm.
    hidden = torch.linalg.lstsq(A.T, inverse.flatten(1).T, driver="gelsd").solution
    assert float((A.T @ hidden - inverse.flatten(1).T).norm()) < 1e-3 * float(inverse.norm())
    single = op.A(x.float())
    assert single.real.dtype == torch.float32
    assert float((real(single) - real(op.A(x))).norm()) < 1e-5 * float(op.A(x).norm())


def test_closed_forms_that_need_more_than_the_physics_has_are_not_used() -> None:
    rng = torch.Generator().manual_seed(0)
    for physics, closed in (
        (dinv.SinglePixelCamera(m=20, fast=False, img_size=(1, 8, 8), rng=rng), False),
        (dinv.SinglePixelCamera(m=20, fast=True, img_size=(1, 8, 8), rng=rng), True),
        (dinv.Upsampling((1, 16, 16), filter="bilinear", factor=2), False),
        (dinv.DecomposablePhysics(V=lambda x: 2 * x, V_adjoint=lambda x: 2 * x, img_size=(1, 4, 4)), False),
        (dinv.DecomposablePhysics(mask=-torch.rand(1, 1, 4, 4), img_size=(1, 4, 4)), True),
    ):  # fmt: skip
        op = as_operator(physics)
        assert isinstance(op, WrappedLinearOperator)
        assert op.closed_form is closed
        assert copy.deepcopy(op).closed_form is closed
    # Negative singular values: the prox is right, but deepinv's pseudo-inverse takes them for zeros.
    x = rand(1, 1, 4, 4)
    assert (op.A_dagger(op.A(x)) - x).norm() < 1e-4 * x.norm()


class Times(dinv.LinearPhysics):
    """Twice the image; each subclass breaks one of its claims."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return 2 * x

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return 2 * y


class WrongAdjoint(Times):
    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return 2.01 * y


class Detached(WrongAdjoint):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return 2 * x.detach()


class Affine(Times):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return 2 * x + 1


class Writes(Times):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return x.mul_(2)


class Reuses(Times):
    held = torch.zeros(())

    def A(self, x: Tensor, **_: Any) -> Tensor:
        if self.held.shape != x.shape or self.held.dtype != x.dtype:
            self.held = torch.zeros_like(x)
        return torch.mul(x, 2, out=self.held) if not x.requires_grad else 2 * x


class Random(Times):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return 2 * x * torch.rand(())


class Coupled(Times):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return 2 * x - x.mean(0, keepdim=True)


class Single(Times):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return (x @ torch.full((4, 4), 2.0)).float()

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return y @ torch.full((4, 4), 2.0)


class Counted(Times):
    asked = 0

    def A(self, x: Tensor, **_: Any) -> Tensor:
        Counted.asked += len(x)
        return 2 * x

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        Counted.asked += len(y)
        return 2 * y


class Nearly(dinv.DecomposablePhysics):
    """Twice the image, with a prox for 1.8 times the image."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return 2 * x

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return 2 * y

    def prox_l2(self, z: Tensor, y: Tensor, gamma: Any, **_: Any) -> Tensor:
        return (z + 1.8 * gamma * y) / (1 + 1.8**2 * gamma)


class Oblique(dinv.DecomposablePhysics):
    """The left half of the image, whose inverse invents a right half."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return x[..., : x.shape[-1] // 2]

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return torch.cat([y, torch.zeros_like(y)], -1)

    def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
        return torch.cat([y, 0.1 * y], -1)


SHAPE = (1, 4, 4)


def test_claims_cost_a_few_measurements_and_ours_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Counted.asked = 0
    as_operator(Counted(), SHAPE)
    assert 0 < Counted.asked <= 20, "samples that A and its adjoint were asked for"
    monkeypatch.setattr(claims, "signals", lambda *_: pytest.fail("ours are not tried out"))
    ours = Inpainting(SHAPE, kind="random")
    assert as_operator(ours) is ours


@pytest.mark.parametrize("shape", [SHAPE, (3, 64, 64)])
def test_a_wrong_adjoint_prox_or_inverse_is_found_at_every_size(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large signals are tried in single precision, small ones in double; what is found holds in both."""
    with pytest.warns(UserWarning, match="WrongAdjoint.A_adjoint is not the adjoint"):
        wrong = as_operator(WrongAdjoint(), shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nearly, right = as_operator(Nearly(), shape), as_operator(Times(), shape)
        oblique = as_operator(Oblique(), shape)
    assert not nearly.closed_form  # type: ignore[attr-defined]
    seen = rand(1, *oblique.measurement_shape)
    assert torch.allclose(oblique.A_dagger(seen), torch.cat([seen, 0 * seen], -1), rtol=0, atol=1e-4)  # type: ignore[attr-defined, misc]
    for dtype in (torch.float32, torch.float64):
        y = rand(2, *shape).to(dtype)
        assert torch.equal(wrong.A_adjoint(y), 2 * y)  # type: ignore[attr-defined]
    monkeypatch.setattr(adapter, "transpose", lambda *_: pytest.fail("an adjoint that is right is the physics' own"))
    for dtype in (torch.float32, torch.float64):
        right.A_adjoint(rand(2, *shape).to(dtype))  # type: ignore[attr-defined]


def test_a_wrong_adjoint_is_replaced_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"WrongAdjoint.A_adjoint is not the adjoint.*5\.0e-03|WrongAdjoint.A_adjoint is not"):
        op = as_operator(WrongAdjoint(), SHAPE)
    assert torch.equal(op.A_adjoint(rand(2, *SHAPE)), 2 * rand(2, *SHAPE))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="Detached.A_adjoint is not the adjoint.*autograd does not see"):
        as_operator(Detached(), SHAPE)


def test_what_is_not_linear_is_not_taken_as_linear() -> None:
    with pytest.warns(UserWarning, match="Affine says that it is linear, but is not"):
        op = as_operator(Affine(), SHAPE)
    assert isinstance(op, WrappedOperator)
    assert torch.equal(op.A_vjp(rand(1, *SHAPE), rand(1, *SHAPE)), 2 * rand(1, *SHAPE))
    with pytest.raises(ValueError, match="Affine says that it is linear, but is not.*pass image_shape"):
        as_operator(Affine()).image_shape_for(rand(1, *SHAPE))


@pytest.mark.parametrize("kind", [Writes, Reuses, Single])
def test_what_writes_or_rounds_is_contained(kind: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = as_operator(kind(), SHAPE)
    x = rand(2, *SHAPE)
    kept, y = x.clone(), op.A(x)
    first = y.clone()
    op.A(x.flip(0))
    assert torch.equal(x, kept)
    assert torch.equal(y, first)
    assert y.dtype == torch.float64
    best = op.prox_l2(x, y, 1.0)  # type: ignore[attr-defined]
    assert best.dtype == torch.float64
    assert (best + op.A_adjoint(op.A(best) - y) - x).norm() < 1e-5 * (x.norm() + 4 * y.norm())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "message"), [(Random, "differently each time"), (Coupled, "independent of each other")])
def test_what_no_sampler_can_use_is_refused(kind: type, message: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} measures.*{message}"):
        as_operator(kind(), SHAPE)


def test_shapes_that_the_physics_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Inpainting does not take images \(1, 3, 4, 5\)|contradicts"):
        as_operator(dinv.Inpainting((3, 4, 4), mask=0.5), (3, 4, 5))
    with pytest.raises(ValueError, match="CompressedSensing|contradicts"):
        as_operator(dinv.CompressedSensing(m=5, img_size=(1, 4, 4)), (1, 4, 5))
    with pytest.raises(ValueError, match=r"TensorList; only tensor.*operators.stack"):
        as_operator(dinv.Pansharpen((3, 8, 8), filter="bilinear"), (3, 8, 8))


def test_parameters_per_sample_are_selected() -> None:
    filters = rand(3, 1, 3, 3).float()
    for physics, shape in (
        (dinv.BlurFFT((1, 6, 7), filter=filters), (1, 6, 7)),
        (dinv.Blur(filters, padding="circular"), (1, 6, 7)),
        (dinv.Inpainting((1, 6, 7), mask=(rand(3, 1, 6, 7) > 0).float()), (1, 6, 7)),
        (dinv.SpaceVaryingBlur(rand(3, 1, 2, 3, 3).float(), rand(3, 1, 2, 6, 7).float(), padding="circular"), (1, 6, 7)),
        (dinv.MRI(mask=(rand(3, 2, 2, 4, 5) > 0).float(), three_d=True), (2, 2, 4, 5)),
    ):  # fmt: skip
        op = as_operator(physics, shape)
        x = rand(3, *shape)
        y, index = op.A(x), torch.tensor([2, 0])
        chosen = op.select(index)
        assert torch.allclose(chosen.A(x[index]), y[index], rtol=0, atol=1e-12), type(physics)
        z = rand(3, *shape).flip(-1)
        whole = op.prox_l2(z, y, 2.0)  # type: ignore[attr-defined]
        assert torch.allclose(chosen.prox_l2(z[index], y[index], 2.0), whole[index], rtol=0, atol=1e-7)  # type: ignore[attr-defined]
