"""The package as such: imports, tables, deepinv's interface, precision, gradients, and wrapping of foreign physics."""

import ast
import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from operator_cases import CASES

import operators
from operators import GaussianBlur, Identity, Inpainting, LinearOperator, Matrix, SpectralOperator, SuperResolution, as_operator, generator
from operators.core.adapter import WrappedLinearOperator, WrappedOperator
from operators.core.custom import CallableOperator
from operators.core.solve import conjugate_gradient

PACKAGE = Path(operators.__file__).parent


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator(2, "test"), dtype=torch.float64)


def test_never_imports_invsolve() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] == "invsolve"], path


def test_import_is_light_and_lazy() -> None:
    code = "import sys, operators; assert not {'deepinv', 'torchvision', 'scipy'} & set(sys.modules); " + (
        "from operators import generator, GaussianNoise, NOISES; assert 'deepinv' not in sys.modules; "
        "from operators import Inpainting; assert 'deepinv' in sys.modules; assert 'Inpainting' in dir(operators)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("table", ["OPERATORS", "NOISES"])
def test_tables_resolve_and_are_documented(table: str) -> None:
    for name in getattr(operators, table):
        found = operators.find(getattr(operators, table), name)
        assert getattr(operators, found.__name__) is found
        assert found.__doc__
        assert len(found.__doc__.splitlines()[0]) > 20
        assert "Raises" in found.__doc__ or "ValueError" in found.__doc__


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'bluur'.*gaussian_blur"):
        operators.find(operators.OPERATORS, "bluur")
    with pytest.raises(AttributeError, match="bluur"):
        _ = operators.bluur


SMALL = [
    Identity((1, 8, 8)),
    Matrix(rand(9, 64), (1, 8, 8)),
    GaussianBlur((1, 8, 8), 1.0),
    GaussianBlur((1, 8, 8), 1.0, boundary="reflect"),
    Inpainting((1, 8, 8)),
    SuperResolution((1, 8, 8), 2),
]
NAMES = [type(op).__name__ for op in SMALL]


# One row of those whose masks differ between the samples, as deepinv's tests measure a single image.
LINEAR = {name: op.select(torch.tensor([0])) for name, build in CASES.items() if (op := build()).linear}
PEER_TESTS: dict[str, tuple[str, ...]] = {
    "test_operators_adjointness": ("rng",),
    "test_pseudo_inverse": ("rng", "implicit"),
    "test_operators_differentiability": (),
    "test_physics_state_dict": (),
    "test_adjoint_autograd": (),
    "test_operator_cropper": ("rng",),
    "test_concatenation": (),
    "test_device_consistency": (),
}
# These two compare complex numbers with real ones (a mean square, and an adjoint between complex spaces).
NOT_FOR_COMPLEX = ("test_operators_adjointness", "test_operators_differentiability")


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, LinearOperator], None]:
    """Runs one of deepinv's generic physics tests (deepinv/tests/test_physics.py) on an operator of ours.

    They look their operator up by name; what is patched is that.
    """
    tests = pytest.importorskip("deepinv.tests.test_physics")
    monkeypatch.chdir(tmp_path)

    def run(test: str, op: LinearOperator) -> None:
        def find(name: str, device: str, imsize: object = None, get_physics_param: bool = False) -> tuple[object, ...]:
            found = (copy.deepcopy(op), op.image_shape, 1.0, torch.float32)
            return (*found, []) if get_physics_param else found

        monkeypatch.setattr(tests, "find_operator", find)
        values = {"rng": torch.Generator().manual_seed(0), "implicit": True}
        device = () if test == "test_device_consistency" else ("cpu",)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            getattr(tests, test)("ours", *device, *(values[name] for name in PEER_TESTS[test]))

    return run


@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
@pytest.mark.parametrize("name", LINEAR)
def test_deepinvs_own_tests_pass(peer: Callable[[str, LinearOperator], None], name: str) -> None:
    op = LINEAR[name]
    unfit = set(NOT_FOR_COMPLEX) if op.A(torch.zeros(1, *op.image_shape)).is_complex() else set()
    if math.prod(op.image_shape) == 1:
        # It hides half of the entries of y at random: with one pixel, often all that are not zero.
        unfit.add("test_concatenation")
    for test in PEER_TESTS:
        if test not in unfit:
            peer(test, op)


class Scaled(SuperResolution):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return 1.1 * super()._adjoint(y)


class Mirrored(GaussianBlur):
    """The adjoint that one gets by forgetting the border: A itself."""

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._forward(y)


class Echoing(Inpainting):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y + 0.3 * y.flip(-1)


WRONG = {"scaled": Scaled((1, 8, 8), 2), "border": Mirrored((1, 8, 8), 1.0, boundary="reflect"), "echo": Echoing((1, 8, 8))}


@pytest.mark.parametrize(("name", "test"), [*((name, "test_operators_adjointness") for name in WRONG), ("echo", "test_pseudo_inverse")])
def test_deepinvs_own_tests_catch_a_wrong_adjoint(peer: Callable[[str, LinearOperator], None], name: str, test: str) -> None:
    with pytest.raises(AssertionError):
        peer(test, WRONG[name])


def test_deepinvs_compositions_of_ours() -> None:
    """`*` of two of ours is ours; with a foreign physics, and through `compose` and `stack`, the result is deepinv's and right."""
    blur, small = GaussianBlur((1, 8, 8), 1.0), SuperResolution((1, 8, 8), 2)
    x = rand(2, 1, 8, 8)
    expected = small.A(blur.A(x))
    product = small * blur
    assert isinstance(product, LinearOperator)
    assert torch.equal(product.A(x), expected)
    assert torch.equal((small @ blur).A(x), expected)
    with pytest.warns(UserWarning, match="not be decomposable"):
        mixed = small * dinv.physics.Inpainting((1, 8, 8), mask=torch.ones(1, 8, 8).double())
    assert torch.equal(mixed.A(x), small.A(x))
    # deepinv's compose lets its first argument act first.
    theirs = dinv.physics.compose(blur, small)
    assert torch.equal(theirs.A(x), expected)
    assert torch.allclose(theirs.A_adjoint(expected), blur.A_adjoint(small.A_adjoint(expected)), atol=1e-14)
    assert torch.equal(as_operator(theirs, (1, 8, 8)).A(x), expected)
    stacked = dinv.physics.stack(blur, small)
    assert torch.equal(stacked.A(x)[1], small.A(x))
    with pytest.raises(ValueError, match="TensorList"):
        as_operator(stacked, (1, 8, 8)).A(x)


@pytest.mark.parametrize("op", SMALL, ids=NAMES)
def test_works_as_a_deepinv_physics(op: LinearOperator) -> None:
    x = rand(2, 1, 8, 8)
    y = op(x)
    assert torch.equal(y, op.A(x))
    fidelity = dinv.optim.L2()
    assert torch.allclose(fidelity.grad(0 * x, y, op), -op.A_adjoint(y))
    assert torch.allclose(fidelity.prox(x, y, op, gamma=0.7), op.prox_l2(x, y, 0.7))
    assert torch.equal(op.prox_l2(None, y, 0.7), op.prox_l2(torch.zeros_like(x), y, 0.7))
    assert torch.equal(op.clone().A(x), y)
    norm = torch.linalg.matrix_norm(torch.stack([op.A(e[None]).flatten() for e in torch.eye(64).double().reshape(64, 1, 8, 8)]), 2)
    with torch.random.fork_rng():
        assert float(op.compute_sqnorm(x[:1], max_iter=1000, tol=1e-6, verbose=False)) == pytest.approx(float(norm**2), rel=1e-3)


@pytest.mark.parametrize("op", SMALL, ids=NAMES)
def test_precision_follows_the_input_through_every_cast(op: LinearOperator) -> None:
    x, expected = rand(1, 1, 8, 8), op.A(rand(1, 1, 8, 8))
    for cast in (copy.deepcopy(op).half(), copy.deepcopy(op).to(torch.float32), copy.deepcopy(op).to(torch.float64)):
        assert (cast.A(x) - expected).abs().max() < 1e-14
        assert cast.A(x.float()).dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_complex_signals_are_taken_only_where_that_is_declared(name: str) -> None:
    op = CASES[name]().select(torch.tensor([0]))
    x = torch.complex(rand(1, *op.image_shape), rand(1, *op.image_shape).flip(-1))
    parts = op.parts if hasattr(op, "parts") else [op]
    declared = (Identity, Inpainting, CallableOperator, WrappedOperator, WrappedLinearOperator)
    assert op.complex_signals is all(isinstance(part, declared) for part in parts)
    if op.complex_signals:
        return
    acts = [op.A, op.measure] + ([lambda z: op.prox_l2(z, op.A(z.real), 1.0)] if op.linear else [])
    for act in acts:
        with pytest.raises(ValueError, match="expects [xz] as two real channels|expects a real [xz], got torch.complex128"):
            act(x)
    y = op.A(x.real)
    if isinstance(op, SpectralOperator):
        with pytest.raises(ValueError, match="two real channels|expects a real y"):
            op.A_adjoint(y + 0j)


def test_a_changed_buffer_is_seen_at_once() -> None:
    op, x = Inpainting((1, 4, 4)), torch.ones(1, 1, 4, 4)
    op.A(x)
    op.mask.fill_(1)
    assert op.A(x).sum() == 16
    op.mask = torch.zeros(1, 4, 4, dtype=torch.float64)
    assert op.A(x).sum() == 0
    assert op.measured == 0


def test_conjugate_gradients_refuse_to_stop_early() -> None:
    diagonal = torch.linspace(1, 1e4, 50, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"residual of .* after 3 iterations, asked for 1e-11"):
        conjugate_gradient(lambda v: diagonal * v, rand(2, 50), max_iter=3)
    with pytest.raises(RuntimeError, match="not finite"):
        conjugate_gradient(lambda v: diagonal * v, torch.full((1, 50), torch.nan, dtype=torch.float64))


def test_conjugate_gradients_do_not_couple_the_batch() -> None:
    diagonal, b = torch.linspace(1, 300, 40, dtype=torch.float64), rand(3, 40)
    b[0, 1:], b[1] = 0, 0
    x = conjugate_gradient(lambda v: diagonal * v, b)
    for row in range(3):
        assert torch.equal(x[row : row + 1], conjugate_gradient(lambda v: diagonal * v, b[row : row + 1]))
    assert (diagonal * x - b).norm() < 1e-11 * b.norm() * 2
    assert torch.autograd.gradcheck(lambda v: conjugate_gradient(lambda w: diagonal * w, v), b.requires_grad_())


class TestWrapping:
    def test_ours_pass_through(self) -> None:
        op = Identity((2,))
        assert as_operator(op) is op
        with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
            as_operator(op, (3,))

    @pytest.mark.parametrize("other", [None, torch.eye(2), "inpainting", lambda x: x])
    def test_other_things_are_refused(self, other: object) -> None:
        with pytest.raises(TypeError, match=r"Operator.*Physics.*got"):
            as_operator(other)

    def test_physics_is_not_touched(self) -> None:
        physics = dinv.physics.Blur(rand(1, 1, 3, 3).float(), padding="reflect")
        before = (copy.deepcopy(physics.state_dict()), physics.max_iter, physics.tol, physics.solver)
        op = as_operator(physics, (1, 6, 6))
        assert isinstance(op, LinearOperator)
        op.to(torch.float64)
        op.prox_l2(0.0, op.measure(rand(1, 1, 6, 6)), 2.0)
        after = (physics.state_dict(), physics.max_iter, physics.tol, physics.solver)
        assert torch.equal(before[0]["filter"], after[0]["filter"])
        assert before[1:] == after[1:]
        physics.filter.zero_()
        assert op.A(rand(1, 1, 6, 6)).abs().sum() > 0

    def test_unknown_shape_is_found_from_y(self) -> None:
        op = as_operator(dinv.physics.Blur(rand(1, 1, 3, 3).float()))
        assert op.image_shape is None
        with pytest.raises(ValueError, match="unknown"):
            _ = op.measured
        assert op.image_shape_for(rand(2, 1, 6, 5)) == (1, 8, 7)
        assert op.measured == 30

    def test_contradicting_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(1, 4, 5\).*\(1, 4, 4\)"):
            as_operator(dinv.physics.Inpainting((1, 4, 4), mask=0.5), (1, 4, 5))

    def test_masks_count_and_restrict(self) -> None:
        mask = torch.ones(1, 1, 4, 4)
        mask[..., :2] = 0
        for physics, per_pixel in ((dinv.physics.Inpainting((3, 4, 4), mask=mask), 3), (dinv.physics.MRI(mask=mask[0, 0]), 2)):
            op = as_operator(physics)
            assert op.measured == 8 * per_pixel
            y = op.measure(rand(2, per_pixel, 4, 4), noise=1.0)
            assert not y[..., :2].any()

    def test_masks_of_different_counts_must_be_selected(self) -> None:
        mask = torch.ones(2, 1, 4, 4)
        mask[1, 0, 0] = 0
        op = as_operator(dinv.physics.Inpainting((1, 4, 4), mask=mask))
        with pytest.raises(ValueError, match=r"\[16, 12\]"):
            _ = op.measured
        assert op.select(torch.tensor([1])).measured == 12

    def test_closed_forms_are_recognised(self) -> None:
        down = dinv.physics.Downsampling
        cases = [
            (dinv.physics.Inpainting((1, 4, 4), mask=0.5), True),
            (down((1, 16, 16), filter="bilinear", factor=2), True),
            (down((1, 8, 8), filter="gaussian", factor=2), False),
            (down((1, 9, 9), filter="bilinear", factor=2), False),
            (down((1, 16, 16), filter=None, factor=2), False),
            (down((1, 16, 16), filter="bilinear", factor=2, padding="reflect"), False),
        ]
        for physics, closed in cases:
            op = as_operator(physics)
            assert isinstance(op, LinearOperator)
            assert op.closed_form is closed


@pytest.mark.parametrize("name", CASES)
def test_a_weight_of_zero_leaves_z_alone(name: str) -> None:
    op = CASES[name]().select(torch.tensor([0]))
    if not op.linear:
        return
    z = rand(2, *op.image_shape)
    y = op.A(rand(2, *op.image_shape).flip(-1))
    assert torch.equal(op.prox_l2(z, y, 0.0), z)
    mixed = op.prox_l2(z, y, torch.tensor([0.0, 2.0]))
    assert torch.equal(mixed[:1], z[:1])
    assert (mixed[1:] - op.prox_l2(z[1:], y[1:], 2.0)).norm() < 1e-8 * mixed.norm()
