"""Composition, stacking and pullback against direct computation, and what they refuse."""

import copy
import pickle

import deepinv.physics as dinv
import pytest
import torch
from operator_cases import rand
from operator_cases.compose import Doubled, spectrum, tone
from torch import Tensor

from operators import (
    GaussianBlur,
    GaussianNoise,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    StackedOperator,
    SuperResolution,
    as_operator,
    check,
    compose,
    compose_parts,
    from_callable,
    norm,
    pullback,
    report,
    stack,
    stack_parts,
)

SHAPE = (3, 8, 8)
BLUR, SMALL, BOX = GaussianBlur(SHAPE, 0.8), SuperResolution(SHAPE, 2), Inpainting(SHAPE, size=4)


def test_right_factor_acts_first() -> None:
    x, y = rand(2, *SHAPE), rand(2, 3, 4, 4)
    product = SMALL @ BLUR
    assert isinstance(product, LinearOperator)
    assert torch.equal(product.A(x), SMALL.A(BLUR.A(x)))
    assert torch.equal(product.A_adjoint(y), BLUR.A_adjoint(SMALL.A_adjoint(y)))
    assert product.image_shape == SHAPE
    assert product.measurement_shape == (3, 4, 4)
    assert not torch.allclose((BOX @ BLUR).A(x), (BLUR @ BOX).A(x))


def test_products_are_associative_and_flat() -> None:
    last = Matrix(rand(5, 48) - 0.5, (3, 4, 4))
    x = rand(1, *SHAPE)
    left, right = (last @ SMALL) @ BLUR, last @ (SMALL @ BLUR)
    assert torch.equal(left.A(x), right.A(x))
    assert [type(op) for op in left.parts] == [type(op) for op in right.parts] == [GaussianBlur, SuperResolution, Matrix]
    assert compose(BLUR).A(x).equal(BLUR.A(x))


def test_solves_of_a_product_are_those_of_its_matrix() -> None:
    A, B = rand(4, 5) - 0.5, rand(5, 6) - 0.5
    product, whole = Matrix(A, (5,)) @ Matrix(B, (6,)), Matrix(A @ B, (6,))
    z, y = rand(3, 6), rand(3, 4)
    assert torch.allclose(product.prox_l2(z, y, 7.0), whole.prox_l2(z, y, 7.0), atol=1e-9)
    assert torch.allclose(product.A_dagger(y), whole.A_dagger(y), atol=1e-6)


def test_chain_rule_uses_the_jacobian_of_each_part() -> None:
    class Rounded(type(from_callable(tone, SHAPE))):  # type: ignore[misc]
        """A step function whose A_vjp is declared to be the identity."""

        straight_through = True

        def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
            return v

    steps = Rounded(SHAPE, torch.round)
    x, v = rand(1, *SHAPE), rand(1, *SHAPE)
    both = steps @ from_callable(tone, SHAPE)
    assert both.straight_through
    assert not (SMALL @ BLUR).straight_through
    slope = 1 - torch.tanh(x) ** 2 + 0.2 * x
    assert torch.allclose(both.A_vjp(x, v), slope * v, atol=1e-14)
    assert torch.allclose(stack(steps, BLUR).A_vjp(x, torch.cat([v.flatten(1)] * 2, 1)), v + BLUR.A_adjoint(v), atol=1e-14)


def test_what_is_measured_is_what_the_last_part_measures() -> None:
    product = BOX @ BLUR
    assert product.measured == BOX.measured
    y = product.measure(rand(2, *SHAPE), 0.3)
    assert torch.equal(product.restrict(torch.ones_like(y)), BOX.restrict(torch.ones_like(y)))
    assert not y[:, :, BOX.mask[0] == 0].any()
    assert torch.equal(product.view(y), BOX.view(y))


def test_stack_joins_and_splits() -> None:
    both = stack(BOX, SMALL)
    assert isinstance(both, StackedOperator)
    x = rand(2, *SHAPE)
    y = both.A(x)
    assert y.shape == (2, 192 + 48)
    assert both.measured == BOX.measured + 48
    for part, op in zip(both.split(y), (BOX, SMALL), strict=True):
        assert torch.equal(part, op.A(x))
    assert torch.equal(both.join(both.split(y)), y)
    assert torch.equal(both.A_adjoint(y), BOX.A_adjoint(BOX.A(x)) + SMALL.A_adjoint(SMALL.A(x)))
    picture = both.view(y)
    assert picture.shape == (2, 3, 8, 8 + 2 + 8)
    assert torch.equal(picture[..., :8], BOX.view(BOX.A(x)))
    assert torch.equal(picture[..., 10:], SMALL.view(SMALL.A(x)))
    hidden = both.restrict(torch.ones_like(y)) == 0
    assert int(hidden[0].sum()) == 3 * 16
    noisy = both.measure(x, GaussianNoise(0.5))
    assert not noisy[hidden].any()


def test_stacking_adds_information() -> None:
    """Each of two complementary masks loses half of the image; both together lose nothing."""
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    halves = [Inpainting(SHAPE, kind="file", mask=mask) for mask in (left, 1 - left)]
    both = stack(*halves)
    x = rand(1, *SHAPE)
    assert torch.allclose(both.A_dagger(both.A(x)), x, atol=1e-8)
    assert norm(both) == pytest.approx(1.0, abs=1e-12)


def test_pullback_is_the_operator_of_the_latent() -> None:
    decode = Doubled()
    op = pullback(BOX, decode, (2, 4, 4))
    z = rand(2, 2, 4, 4).float()
    assert not op.linear
    assert torch.equal(op.A(z), BOX.A(decode.eval()(z)))
    z.requires_grad_()
    v = rand(2, *SHAPE).float()
    (expected,) = torch.autograd.grad(BOX.A(decode(z)), z, v)
    assert torch.allclose(op.A_vjp(z.detach(), v), expected, atol=1e-6)
    assert torch.autograd.gradcheck(op.A, rand(1, 2, 4, 4).requires_grad_())


def test_parts_move_and_pickle_with_the_whole() -> None:
    blur = GaussianBlur(SHAPE, 0.8)
    op = SuperResolution(SHAPE, 2) @ blur
    assert {name.split(".")[0] for name in op.state_dict()} == {"parts"}
    assert set(op.state_dict()) >= {"parts.0.rows", "parts.1.rows"}
    x = rand(1, *SHAPE)
    assert torch.equal(pickle.loads(pickle.dumps(op)).A(x), op.A(x))
    assert (copy.deepcopy(op).half().A(x) - op.A(x)).abs().max() < 1e-14
    foreign = blur @ as_operator(dinv.Inpainting(SHAPE, mask=0.5))
    assert not foreign.picklable
    assert op.picklable
    assert op.to("meta").parts[0].rows.device.type == "meta"
    # Parts are shared, not copied.
    assert blur.rows.device.type == "meta"


def test_masks_of_each_image_reach_the_parts() -> None:
    own = Inpainting(SHAPE, kind="random", per_image=True)
    ids, x = ["a", "b", "c"], rand(3, *SHAPE)
    for op in (own @ BLUR, stack(own, SMALL)):
        bound = op.for_ids(ids)
        assert bound.ids == tuple(ids)
        assert op.ids is None
        y = bound.A(x)
        assert torch.equal(bound.select(torch.tensor([2])).A(x[2:]), y[2:])
        assert torch.equal(op.for_ids(["c"]).A(x[2:]), y[2:])
        assert torch.equal(op.measure(x, 0.1, ids=ids)[1:2], op.measure(x[1:2], 0.1, ids=["b"]))
        assert [law for law in check(op) if not law.passed] == []
    assert (SMALL @ BLUR).for_ids(ids).ids is None
    with pytest.raises(ValueError, match="different image ids"):
        stack(own.for_ids(["a"]), own.for_ids(["b"]))


def test_lists_of_parts() -> None:
    x = rand(1, *SHAPE)
    chain = compose_parts(SHAPE, [{"name": "gaussian_blur", "std": 0.8}, {"name": "super_resolution", "factor": 2}])
    assert torch.equal(chain.A(x), (SMALL @ BLUR).A(x))
    side = stack_parts(SHAPE, [{"name": "inpainting", "size": 4}, "identity"])
    assert torch.equal(side.A(x), stack(BOX, Identity(SHAPE)).A(x))


REFUSALS = [
    (lambda: BLUR @ SMALL, r"GaussianBlur acts on signals \(3, 8, 8\), but SuperResolution before it gives \(3, 4, 4\)"),
    (lambda: stack(BLUR, Identity((3, 4, 4))), r"one shape, got GaussianBlur \(3, 8, 8\), Identity \(3, 4, 4\)"),
    (lambda: stack(), "at least one"),
    (lambda: compose(), "at least one"),
    (lambda: SMALL @ as_operator(dinv.Blur(torch.ones(1, 1, 3, 3))), "known image_shape.*WrappedLinearOperator is unknown"),
    (lambda: stack(Identity((1, 4, 4)), from_callable(spectrum, (1, 4, 4))).A(rand(1, 1, 4, 4)), "Identity real, CallableOperator complex"),
    (
        lambda: pullback(BOX, lambda z: z, (1, 4, 4)),
        r"Inpainting acts on signals \(3, 8, 8\), but CallableOperator before it gives \(1, 4, 4\)",
    ),
    (lambda: compose_parts(SHAPE, []), "at least one"),
    (lambda: compose_parts(SHAPE, ["blurr"]), "unknown name 'blurr'"),
    (lambda: compose_parts(SHAPE, [{"std": 1.0}]), r"parts\[0\] needs a name"),
    (lambda: compose_parts(SHAPE, ["identity", {"name": "inpainting", "szie": 1}]), r"parts\[1\] \(inpainting\).*'szie'"),
    (lambda: (SMALL @ BLUR).A(rand(1, 3, 4, 4)), r"\(B, 3, 8, 8\), got \(1, 3, 4, 4\)"),
    (lambda: (SMALL @ BLUR).A_adjoint(rand(1, 3, 8, 8)), r"\(B, 3, 4, 4\), got \(1, 3, 8, 8\)"),
]


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals(act: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()  # type: ignore[operator]


def test_only_operators_are_multiplied() -> None:
    with pytest.raises(TypeError):
        _ = BLUR @ torch.eye(3)
    with pytest.raises(TypeError, match=r"Operator.*Physics"):
        stack(BLUR, tone)


class TestReport:
    """The table of laws."""

    def test_a_right_operator(self) -> None:
        found = report(SuperResolution((1, 8, 8), 2))
        assert found.passed
        text = str(found)
        assert text.splitlines()[0] == (
            "SuperResolution: (1, 8, 8) -> (1, 4, 4), linear, prox in closed form, pseudo-inverse in closed form"
        )
        rows = {line.split("  ")[0]: line for line in text.splitlines()}
        assert rows["law"].split() == ["law", "float64", "x1", "float64", "x3", "float32", "x1", "float32", "x3", "bounds"]
        for law in ("deterministic", "linear", "adjoint", "batch independent", "norm of A (for information)", "A_vjp is autograd's"):
            assert law in rows
        assert "closed-form prox is that of CG" in rows
        assert text.endswith("all laws hold")

    def test_the_norm_is_the_largest_singular_value(self) -> None:
        A = torch.diag(torch.tensor([3.0, 2.0, 0.5]).double())
        found = {law.name: law for law in check(Matrix(A, (3,)))}
        assert found["norm of A (for information)"].value == pytest.approx(3, abs=1e-9)
        assert found["norm of A (for information)"].passed

    def test_a_wrong_operator_is_named(self) -> None:
        class Wrong(SuperResolution):
            def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
                return super()._prox(z, y, 1.01 * gamma)

        found = report(Wrong((1, 8, 8), 2), batches=(1,))
        assert not found.passed
        assert "closed-form prox is that of CG" in found.broken
        assert "adjoint" not in found.broken
        assert "FAIL" in str(found)
        assert "broken (" in str(found).splitlines()[-1]

    def test_an_operator_that_raises_is_a_failed_law(self) -> None:
        class Raises(Identity):
            def _forward(self, x: Tensor) -> Tensor:
                raise TypeError("not\nyet")

        assert [law.name for law in check(Raises((3,)))] == ["raised TypeError: not yet"]

        class RaisesLater(Identity):
            picklable = False

            def view(self, y: Tensor) -> Tensor:
                raise KeyError("later")

        laws = check(RaisesLater((1, 4, 4)))
        assert [law.name for law in laws if not law.passed] == ["raised KeyError: 'later'"]
        assert {"adjoint", "deepcopy"} <= {law.name for law in laws}

    def test_cuda_is_skipped_with_a_reason_or_compared(self) -> None:
        law = next(law for law in check(Identity((1, 4, 4))) if law.name == "same on CPU and CUDA")
        assert law.passed
        assert torch.cuda.is_available() == (law.note == "")


def test_complex_signals_where_the_parts_take_them() -> None:
    """A mask and a modulus work behind a complex map; what would lose the imaginary part is refused, in composition or not."""
    fourier = from_callable(lambda x: torch.fft.fft2(x, norm="ortho"), (1, 5, 6), linear=True)
    for outer in (Inpainting((1, 5, 6), kind="random", fraction=0.4), from_callable(lambda z: z.abs(), (1, 5, 6))):
        assert [law for law in check(outer @ fourier) if not law.passed] == []
    x = torch.rand(1, 1, 5, 6, dtype=torch.float64)
    back = from_callable(lambda z: torch.fft.ifft2(z, norm="ortho"), (1, 5, 6), linear=True)
    for outer in (back, GaussianBlur((1, 5, 6), 0.5)):
        with pytest.raises(ValueError, match=r"expects a real x, got torch.complex128 of shape \(1, 1, 5, 6\)"):
            (outer @ fourier).A(x)
