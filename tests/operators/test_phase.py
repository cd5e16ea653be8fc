"""Phase retrieval against numpy and deepinv, its symmetries, its gradients, and the classical algorithms."""

import math
from collections.abc import Callable
from typing import Any

import deepinv.physics as dinv
import numpy as np
import pytest
import torch
from operator_cases.phase import CASES
from torch import Tensor

from operators import (
    CodedDiffraction,
    FourierMagnitude,
    Identity,
    Operator,
    Phaseless,
    PoissonNoise,
    Ptychography,
    StructuredPhaseRetrieval,
    error_reduction,
    generator,
    hybrid_input_output,
    spectral_start,
)
from operators.core.ambiguity import nearest_equivalent
from operators.core.fourier import fft2c, ifft2c
from operators.phase.baselines import magnitude_residual


def image(*shape: int, key: str = "image") -> Tensor:
    """Uniform numbers in [-1, 1), float64."""
    return 2 * torch.rand(shape, generator=generator(3, key), dtype=torch.float64) - 1


def scene(batch: int = 1, channels: int = 1, side: int = 20) -> Tensor:
    """A few smooth blobs of random place, different in every channel, in [-1, 1]."""
    rng = generator(4, "scene")
    grid = torch.linspace(0, 1, side, dtype=torch.float64)
    total = torch.zeros(batch, channels, side, side, dtype=torch.float64)
    for _ in range(6):
        row, col, size, weight = (torch.rand(4, batch, channels, 1, 1, generator=rng, dtype=torch.float64)).unbind(0)
        square = (grid[:, None] - row) ** 2 + (grid - col) ** 2
        total += (weight + 0.2) * torch.exp(-square / (2 * (0.05 + 0.15 * size) ** 2))
    return 2 * total / total.amax((-2, -1), keepdim=True) - 1


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between channels, (B, C)."""
    return torch.cosine_similarity(a.flatten(2), b.flatten(2), dim=2)


# -- definitions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(16, 24), (15, 8)])
@pytest.mark.parametrize(("span", "output"), [("signed", "magnitude"), ("unit", "magnitude"), ("unit", "intensity")])
def test_fourier_magnitude_is_numpys(sides: tuple[int, int], span: str, output: str) -> None:
    x = image(2, 3, *sides)
    op = FourierMagnitude((3, *sides), output=output, range=span)
    pads = [(0, 0), (0, 0), *((n // 4, n // 4) for n in sides)]
    u = np.pad(x.numpy() if span == "signed" else (x.numpy() + 1) / 2, pads)
    f = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(u, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    expected = np.abs(f) ** (2 if output == "intensity" else 1)
    assert op.measurement_shape == expected.shape[1:]
    np.testing.assert_allclose(op.A(x).numpy(), expected, atol=1e-13)
    np.testing.assert_allclose(op.field(op.to_object(x)).numpy(), f, atol=1e-13)
    assert (ifft2c(fft2c(op.padded(x))) - op.padded(x)).abs().max() < 1e-14


def test_the_published_oversampling() -> None:
    assert FourierMagnitude((3, 256, 256)).measurement_shape == (3, 384, 384)
    assert FourierMagnitude((3, 64, 64)).measurement_shape == (3, 96, 96)
    assert FourierMagnitude((1, 64, 64), oversample=4.0).measurement_shape == (1, 128, 128)
    assert FourierMagnitude((1, 5, 7), oversample=0.0).measurement_shape == (1, 5, 7)


@pytest.mark.parametrize(("kind", "moduli"), [("octanary", [math.sqrt(0.5), math.sqrt(3)]), ("phase", [1.0])])
def test_coded_diffraction_is_numpys(kind: str, moduli: list[float]) -> None:
    x = image(2, 3, 9, 12)
    op = CodedDiffraction((3, 9, 12), patterns=5, kind=kind, output="intensity", seed=7)
    masks = torch.view_as_complex(op.masks).numpy()
    expected = np.abs(np.fft.fftshift(np.fft.fft2(masks * x.numpy()[:, :, None], norm="ortho"), axes=(-2, -1))) ** 2
    np.testing.assert_allclose(op.A(x).numpy(), expected, atol=1e-12)
    assert sorted(np.unique(np.abs(masks).round(9))) == pytest.approx(moduli)
    assert not torch.equal(CodedDiffraction((3, 9, 12), patterns=5, kind=kind, seed=8).masks, op.masks)


def test_octanary_masks_have_the_published_law() -> None:
    masks = torch.view_as_complex(CodedDiffraction((1, 100, 100), patterns=10).masks)
    n = masks.numel()
    assert float((masks.abs() < 1).double().mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / n))
    # Var |d|^2 = 0.8 * 0.25 + 0.2 * 9 - 1 = 1.
    assert float(masks.abs().square().mean()) == pytest.approx(1.0, abs=4 / math.sqrt(n))
    quarter = (masks.angle() / (math.pi / 2)).round() % 4
    assert [float((quarter == k).double().mean()) for k in range(4)] == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.1875 / n))


@pytest.mark.parametrize("size", [(13, 11), (7, 8), (5, 6)])
@pytest.mark.parametrize("kind", ["phase", "signs"])
def test_structured_random_is_deepinvs(size: tuple[int, int], kind: str) -> None:
    shape = (1, 7, 8)
    op = StructuredPhaseRetrieval(shape, layers=2, size=size, kind=kind, output="intensity")
    diagonals = torch.view_as_complex(op.diagonals)
    theirs = dinv.StructuredRandomPhaseRetrieval(shape, (1, *size), n_layers=2, dtype=torch.cdouble)
    theirs.B.diagonals = diagonals[:, None]
    x = image(2, *shape)
    expected = theirs.A(x.to(torch.complex128))
    assert (op.A(x) - expected).abs().max() < 1e-13 * expected.max()
    # deepinv's A_vjp is 2 B^H (B x * v), complex; ours is real for a real image.
    v = image(2, 1, *size, key="v")
    assert (op.A_vjp(x, v) - theirs.A_vjp(x.to(torch.complex128), v).real).abs().max() < 1e-12


def test_ptychography_is_deepinvs() -> None:
    op = Ptychography((1, 12, 15), probe_size=6, step=4, output="intensity")
    probe = torch.view_as_complex(op.probe)
    # deepinv counts shifts from a probe in the middle of the object.
    middle = torch.tensor([(12 - 6) // 2, (15 - 6) // 2])
    linear = dinv.PtychographyLinearOperator((1, 12, 15), probe=probe[None], shifts=op.places - op.margin - middle)
    linear.probe = probe[None, None].expand(1, len(op.places), -1, -1)
    x = image(2, 1, 12, 15)
    expected = linear.A(x.to(torch.complex128)).abs().square()
    ours = torch.fft.ifftshift(op.A(x)[:, 0], dim=(-2, -1))
    assert ours.shape == expected.shape == (2, len(op.places), 6, 6)
    assert (ours - expected).abs().max() < 1e-12


def test_ptychography_lights_every_pixel_and_measures_channels_alike() -> None:
    op = Ptychography((3, 20, 17))
    x = image(1, 1, 20, 17).expand(1, 3, -1, -1)
    y = op.A(x)
    assert torch.equal(y[:, 0], y[:, 1])
    light = op.field_adjoint(op.field(torch.ones(1, 3, 20, 17, dtype=torch.float64)))
    assert light.min() > 0.99  # a disk of amplitude 1 covers every pixel at least once


@pytest.mark.parametrize("name", CASES)
def test_field_adjoint(name: str) -> None:
    op: Any = CASES[name]()
    u, v = image(2, *op.image_shape), torch.complex(image(2, *op.measurement_shape, key="re"), image(2, *op.measurement_shape, key="im"))
    f, back = op.field(u), op.field_adjoint(v)
    assert abs((f.conj() * v).sum().real - (u * back).sum()) < 1e-12 * f.norm() * v.norm()
    assert (op.to_image(op.to_object(u)) - u).abs().max() < 1e-15


def test_magnitude_undoes_the_output() -> None:
    x = image(1, 2, 6, 6)
    one, two = (FourierMagnitude((2, 6, 6), output=output) for output in ("magnitude", "intensity"))
    assert (two.magnitude(two.A(x)) - one.A(x)).abs().max() < 1e-14
    assert torch.equal(two.magnitude(torch.full((1, 2, 8, 8), -0.1)), torch.zeros(1, 2, 8, 8))


def test_poisson_counts_are_of_the_intensity_of_the_unit_image() -> None:
    x = scene()
    op = FourierMagnitude((1, 20, 20), output="intensity")
    clean = FourierMagnitude((1, 20, 20), output="intensity", range="unit").A(x)
    gain = 1e-3
    y = op.measure(x, noise=PoissonNoise(gain))
    bright = clean > 10 * gain
    scaled = ((y - clean) / (gain * clean).sqrt())[bright]
    assert len(scaled) > 50
    assert float(scaled.square().mean()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / len(scaled)))


# -- gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    op = CASES[name]()
    x = image(1, *op.image_shape).requires_grad_()
    # A non-zero mean keeps the field away from 0, where the magnitude has no derivative.
    assert torch.autograd.gradcheck(lambda t: op.A(t + 0.3), x, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradient_at_a_zero_of_the_field(name: str) -> None:
    op: Any = CASES[name]()
    x = op.to_image(torch.zeros(1, *op.image_shape, dtype=torch.float64))
    v = torch.ones(1, *op.measurement_shape, dtype=torch.float64)
    for at in (x, x.clone().requires_grad_()):
        assert torch.equal(op.A_vjp(at, v).detach(), torch.zeros_like(x))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(op.A(leaf), leaf, v)
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", CASES)
def test_transforms_inference_and_autocast(name: str) -> None:
    op = CASES[name]()
    x, v = image(3, *op.image_shape).float(), image(3, *op.measurement_shape, key="v").float()
    y, back = op.A(x), op.A_vjp(x, v)
    each = torch.func.vmap(lambda one: op.A(one[None])[0])(x)
    assert (each - y).abs().max() < 1e-5 * y.abs().max()
    with torch.inference_mode():
        assert torch.equal(op.A(x), y)
        assert torch.equal(op.A_vjp(x, v), back)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (op.A(x) - y).abs().max() <= 1e-6 * y.abs().max()


# -- symmetries -----------------------------------------------------------------------------------------------------------


def forms(x: Tensor) -> dict[str, Tensor]:
    return {"as it is": x, "reflected": x.flip(-2, -1), "negative": -x, "both": -x.flip(-2, -1)}


@pytest.mark.parametrize("span", ["signed", "unit"])
def test_fourier_symmetries_are_the_operators_and_no_more(span: str) -> None:
    x = image(1, 3, 8, 7)
    op = FourierMagnitude((3, 8, 7), range=span)
    gap = {name: float((op.A(form) - op.A(x)).abs().max()) for name, form in forms(x).items()}
    same = {"as it is", "reflected"} | ({"negative", "both"} if span == "signed" else set())
    assert {name for name, value in gap.items() if value < 1e-12} == same
    # A reflection of one side is another image, and so is one of the border rows moved away.
    assert (op.A(x.flip(-1)) - op.A(x)).abs().max() > 0.1
    found = {name for name, form in forms(x).items() if torch.equal(op.align(form, x), x)}
    assert found == same


def test_align_is_per_sample_and_per_channel() -> None:
    x = image(2, 3, 8, 9)
    op = FourierMagnitude((3, 8, 9))
    mixed = x.clone()
    mixed[0, 1], mixed[0, 2], mixed[1, 0] = -x[0, 1], x[0, 2].flip(-2, -1), -x[1, 0].flip(-2, -1)
    assert (op.A(mixed) - op.A(x)).abs().max() < 1e-12
    assert torch.equal(op.align(mixed, x), x)
    noisy = mixed + 0.3 * image(2, 3, 8, 9, key="noise")
    assert (op.A(op.align(noisy, x)) - op.A(noisy)).abs().max() < 1e-12
    assert ((op.align(noisy, x) - x).abs() < 0.31).all()


@pytest.mark.parametrize("span", ["signed", "unit"])
def test_align_finds_shifts_where_the_border_is_empty(span: str) -> None:
    op = FourierMagnitude((2, 12, 13), range=span, max_shift=4)
    empty = 0.0 if span == "signed" else -1.0
    x = torch.full((1, 2, 12, 13), empty, dtype=torch.float64)
    x[..., 4:8, 4:9] = image(1, 2, 4, 5)
    moved = torch.stack([x[:, 0].roll((3, -4), (-2, -1)), x[:, 1].flip(-2, -1).roll((-4, 2), (-2, -1))], 1)
    assert (op.A(moved) - op.A(x)).abs().max() < 1e-12
    assert (op.align(moved, x) - x).abs().max() < 1e-14
    still = FourierMagnitude((2, 12, 13), range=span).align(moved, x)
    assert (still - x).norm() > 0.5 * x.sub(empty).norm()


def test_align_chooses_the_least_distance_of_all_transforms() -> None:
    e, r, most = image(1, 1, 5, 6), image(1, 1, 5, 6, key="reference"), 2
    candidates = []
    for form in forms(e).values():
        for dy in range(-most, most + 1):
            for dx in range(-most, most + 1):
                wide = torch.nn.functional.pad(form, [most] * 4)
                candidates.append(wide[..., most - dy : most - dy + 5, most - dx : most - dx + 6])
    best = min(candidates, key=lambda c: float((c - r).norm()))
    found = nearest_equivalent(e, r, flip=True, sign=True, max_shift=most)
    assert (found - best).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("op", "same"),
    [
        (CodedDiffraction((1, 6, 7)), {"as it is", "negative"}),
        (CodedDiffraction((1, 6, 7), range="unit"), {"as it is"}),
        (StructuredPhaseRetrieval((1, 6, 7)), {"as it is", "negative"}),
        (Ptychography((1, 9, 8), probe_size=5, step=2), {"as it is", "negative"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operator) else "",
)
def test_other_operators_leave_at_most_the_sign(op: Phaseless, same: set[str]) -> None:
    x = image(1, *op.image_shape)
    assert {name for name, form in forms(x).items() if (op.A(form) - op.A(x)).abs().max() < 1e-12} == same
    assert {name for name, form in forms(x).items() if torch.equal(op.align(form, x), x)} == same


def test_align_of_an_operator_without_symmetries_is_the_estimate() -> None:
    e = image(1, 1, 3, 4)
    assert Identity((1, 3, 4)).align(e, -e) is e


def test_align_is_the_same_in_both_precisions_and_lets_gradients_pass() -> None:
    op = FourierMagnitude((1, 6, 6))
    x = image(1, 1, 6, 6)
    e = (-x.flip(-2, -1) + 0.1).requires_grad_()
    out = op.align(e, x)
    (grad,) = torch.autograd.grad(out.sum(), e)
    assert torch.equal(grad, -torch.ones_like(e))
    single = op.align(e.detach().float(), x.float())
    assert single.dtype == torch.float32
    assert torch.equal(single, out.detach().float())


# -- pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (FourierMagnitude((3, 8, 12)), (3, 12, 18)),
        (FourierMagnitude((2, 8, 12)), (1, 12, 18)),
        (CodedDiffraction((3, 8, 12), patterns=5), (3, 16, 36)),
        (CodedDiffraction((1, 8, 12), patterns=1), (1, 8, 12)),
    ],
    ids=str,
)
def test_view(op: Phaseless, shape: tuple[int, ...]) -> None:
    y = op.A(image(2, *op.image_shape))
    picture = op.view(torch.stack([y[0], 10 * y[1] - 0.1]))
    assert picture.shape == (2, *shape)
    assert picture.amax((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert picture.min() >= -1
    assert op.view(torch.zeros_like(y)).max() == -1


# -- classical algorithms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_error_reduction_never_increases_the_residual(sigma: float) -> None:
    x = scene(batch=2, channels=2)
    op = FourierMagnitude((2, 20, 20), oversample=4.0, range="unit")
    y = op.measure(x, noise=sigma)
    found = error_reduction(op, y, steps=0)
    residuals = [magnitude_residual(op, found, y)]
    for _ in range(40):
        found = error_reduction(op, y, steps=1, start=found)
        residuals.append(magnitude_residual(op, found, y))
    history = torch.stack(residuals)
    assert (history.diff(dim=0) <= 1e-12).all()
    assert (history[-1] < 0.5 * history[0]).all()
    assert (op.to_object(found) >= 0).all()
    assert (found - error_reduction(op, y, steps=40)).abs().max() < 1e-10
    assert (magnitude_residual(op, x, op.A(x)) < 1e-14).all()


@pytest.mark.parametrize("output", ["magnitude", "intensity"])
def test_hybrid_input_output_solves_an_oversampled_problem(output: str) -> None:
    x = scene(channels=2)
    op = FourierMagnitude((2, 20, 20), oversample=4.0, range="unit", output=output)
    y = op.A(x)
    found = hybrid_input_output(op, y, steps=400, restarts=3)
    assert (magnitude_residual(op, found, y) < 5e-3).all()
    assert (op.align(found, x) - x).square().mean() < 1e-3
    assert (magnitude_residual(op, error_reduction(op, y, steps=400), y) > magnitude_residual(op, found, y)).all()


def test_more_restarts_are_never_worse() -> None:
    x = scene(channels=3)
    op = FourierMagnitude((3, 20, 20))
    y = op.measure(x)
    one, four = (magnitude_residual(op, hybrid_input_output(op, y, steps=30, finish=5, restarts=n), y) for n in (1, 4))
    assert (four <= one + 1e-12).all()
    assert (four < one - 1e-6).any()


RECOVERIES: dict[str, Callable[[Any, Tensor, Any], Tensor]] = {
    "error reduction": lambda op, y, ids: error_reduction(op, y, steps=10, ids=ids),
    "hybrid input-output": lambda op, y, ids: hybrid_input_output(op, y, steps=10, finish=2, restarts=2, ids=ids),
    "spectral": lambda op, y, ids: spectral_start(op, y, steps=10, ids=ids),
}


@pytest.mark.parametrize("name", RECOVERIES)
def test_classical_algorithms_are_per_sample_and_reproducible(name: str) -> None:
    recover = RECOVERIES[name]
    op = FourierMagnitude((2, 12, 12), range="unit")
    y = op.measure(scene(batch=3, channels=2, side=12))
    together = recover(op, y, ["a", "b", "c"])
    assert (recover(op, y[1:2], ["b"]) - together[1:2]).abs().max() < 1e-10
    assert torch.equal(recover(op, y, ["a", "b", "c"]), together)
    assert not torch.allclose(recover(op, y, ["d", "b", "c"])[0], together[0])
    assert recover(op, y.float(), None).dtype == torch.float32
    with pytest.raises(ValueError, match="ids"):
        recover(op, y, ["a"])


@pytest.mark.parametrize(("patterns", "least"), [(12, 0.95), (6, 0.9)])
@pytest.mark.parametrize("kind", ["octanary", "phase"])
def test_spectral_start_finds_the_truth_from_many_masks(patterns: int, least: float, kind: str) -> None:
    x = image(2, 2, 20, 20)
    op = CodedDiffraction((2, 20, 20), patterns=patterns, kind=kind)
    found = op.align(spectral_start(op, op.A(x)), x)
    assert cosine(found, x).min() > least
    # The length is a fit to the magnitudes, so it comes out short of the truth by no more than what is misaligned.
    assert ((found.flatten(2).norm(dim=2) / x.flatten(2).norm(dim=2) - 1).abs() < 0.1).all()


def test_spectral_start_in_the_unit_range_has_a_sign() -> None:
    x = scene(channels=2)
    op = CodedDiffraction((2, 20, 20), patterns=10, range="unit", output="intensity")
    found = spectral_start(op, op.A(x))
    assert cosine(op.to_object(found), op.to_object(x)).min() > 0.9


def test_spectral_start_is_the_leading_eigenvector() -> None:
    x = image(1, 1, 5, 4)
    op = CodedDiffraction((1, 5, 4), patterns=6)
    y = op.A(x)
    intensity = y.square() / y.square().mean()
    weight = (1 - 1 / intensity).clamp_min(-5)
    basis = torch.eye(20, dtype=torch.float64).reshape(20, 1, 5, 4)
    matrix = op.field_adjoint(weight * op.field(basis)).reshape(20, 20)
    leading = torch.linalg.eigh(matrix).eigenvectors[:, -1].reshape(1, 1, 5, 4)
    assert cosine(spectral_start(op, y, steps=600), leading).abs().item() == pytest.approx(1.0, abs=1e-8)


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FourierMagnitude((3, 8, 8), output="phase"), "output must be 'magnitude' or 'intensity', got 'phase'"),
        (lambda: FourierMagnitude((3, 8, 8), range="01"), "range must be 'signed'"),
        (lambda: FourierMagnitude((3, 8, 8), oversample=-1.0), "oversample must be a finite number >= 0"),
        (lambda: FourierMagnitude((3, 8, 8), oversample=math.nan), "oversample"),
        (lambda: FourierMagnitude((3, 8, 8), max_shift=8), "max_shift=8 moves an image of 8x8 out of its frame"),
        (lambda: FourierMagnitude((3, 8, 8), max_shift=-1), "max_shift must be an integer >= 0"),
        (lambda: FourierMagnitude((8, 8)), "image_shape must have 3 entries"),
        (lambda: CodedDiffraction((3, 8, 8), kind="ternary"), "kind must be 'octanary' or 'phase'"),
        (lambda: CodedDiffraction((3, 8, 8), patterns=0), "patterns must be an integer >= 1, got 0"),
        (lambda: StructuredPhaseRetrieval((3, 8, 8), layers=0), "layers must be an integer >= 1"),
        (lambda: StructuredPhaseRetrieval((3, 8, 8), kind="gaussian"), "kind must be 'phase' or 'signs'"),
        (lambda: StructuredPhaseRetrieval((3, 8, 8), size=[9, 7]), "at least, or at most"),
        (lambda: StructuredPhaseRetrieval((3, 8, 8), size=[9]), "two positive integers"),
        (lambda: Ptychography((3, 8, 8), probe_size=9), "a probe of 9x9 does not fit an image of 8x8"),
        (lambda: Ptychography((3, 20, 20), probe_size=8, step=8), "step=8 leaves pixels dark between disk probes of 8x8"),
        (lambda: Ptychography((3, 20, 20), step=0), "step must be an integer >= 1"),
        (lambda: Ptychography((3, 20, 20), probe="square"), "probe must be 'disk' or 'gaussian'"),
        (lambda: Ptychography((3, 20, 20), curvature=math.inf), "curvature"),
    ],
)
def test_bad_input_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_calls_are_refused() -> None:
    op = FourierMagnitude((1, 8, 8))
    y = op.A(image(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"x of shape \(B, 1, 8, 8\)"):
        op.A(image(1, 1, 8, 9))
    with pytest.raises(ValueError, match="reference"):
        op.align(image(1, 1, 8, 8), image(1, 1, 9, 8))
    with pytest.raises(ValueError, match="y of shape"):
        error_reduction(op, y[..., 1:])
    with pytest.raises(ValueError, match="start of shape"):
        error_reduction(op, y, start=y)
    with pytest.raises(ValueError, match="steps"):
        error_reduction(op, y, steps=-1)
    with pytest.raises(ValueError, match="beta"):
        hybrid_input_output(op, y, beta=2.0)
    with pytest.raises(ValueError, match="restarts"):
        hybrid_input_output(op, y, restarts=0)
    with pytest.raises(TypeError, match="CodedDiffraction"):
        hybrid_input_output(CodedDiffraction((1, 8, 8)), y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Identity"):
        spectral_start(Identity((1, 8, 8)), y)  # type: ignore[arg-type]
