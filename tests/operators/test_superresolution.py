"""Decimated kernels against deepinv, the block average and dense algebra."""

from collections.abc import Callable

import deepinv.physics as dinv
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from operators import Blur, KernelDownsampling, LinearOperator, SuperResolution, generator
from operators.blur.kernels import bicubic_kernel


def image(*shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=generator(4, "test"), dtype=torch.float64) - 1


def test_decimation_keeps_the_first_pixel_of_each_block() -> None:
    x, z = image(2, 3, 12, 8), image(2, 3, 12, 8)
    op = SuperResolution((3, 12, 8), kind="decimate")
    y = op.A(x)
    assert torch.equal(y, x[..., ::4, ::4])
    assert torch.equal(y, dinv.Downsampling((3, 12, 8), filter=None, factor=4).A(x))
    # As with a mask: measured pixels are averaged with weight gamma, the others keep z to the last bit.
    best = op.prox_l2(z, y, 3.0)
    expected = z.clone()
    expected[..., ::4, ::4] = (z[..., ::4, ::4] + 3 * y) / 4
    assert (best - expected).abs().max() < 1e-15
    best[..., ::4, ::4] = z[..., ::4, ::4]
    assert torch.equal(best, z)
    filled = torch.zeros_like(x)
    filled[..., ::4, ::4] = y
    assert torch.equal(op.A_dagger(y), filled)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("kernel", [image(3, 5), image(4, 4), image(11, 2)], ids=["odd", "even", "tall"])
def test_it_is_scipys_convolution_and_a_stride(factor: int, kernel: Tensor) -> None:
    x = image(2, 1, 6 * factor, 5 * factor)
    wrapped = scipy.ndimage.convolve(x.numpy(), kernel.numpy()[None, None], mode="wrap")
    for offset in range(factor):
        op = KernelDownsampling((1, 6 * factor, 5 * factor), factor, kernel, offset)
        assert np.abs(op.A(x).numpy() - wrapped[..., offset::factor, offset::factor]).max() < 1e-13


def test_it_is_deepinvs_with_its_prox() -> None:
    x, z, kernel = image(2, 1, 16, 12), image(2, 1, 16, 12), image(5, 5)
    theirs = dinv.Downsampling((1, 16, 12), filter=kernel[None, None], factor=2, padding="circular")
    ours = KernelDownsampling((1, 16, 12), 2, kernel)
    y = ours.A(x)
    assert (y - theirs.A(x)).abs().max() < 1e-6
    assert (ours.A_adjoint(y) - theirs.A_adjoint(y)).abs().max() < 1e-6
    assert (ours.prox_l2(z, y, 4.0) - theirs.prox_l2(z, y, 4.0)).abs().max() < 1e-5


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_centred_mean_is_the_block_average(factor: int) -> None:
    sides = (3, 5 * factor, 4 * factor)
    x, z = image(2, *sides), image(2, *sides)
    one = SuperResolution(sides, factor, "average")
    two = KernelDownsampling(sides, factor, "uniform", (factor - 1) // 2, taps=factor)
    y = one.A(x)
    assert (two.A(x) - y).abs().max() < 1e-14
    assert (two.prox_l2(z, y, 7.0) - one.prox_l2(z, y, 7.0)).abs().max() < 1e-13
    assert (two.A_dagger(y) - one.A_dagger(y)).abs().max() < 1e-13


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_centred_bicubic_is_that_of_super_resolution_inside(factor: int) -> None:
    """They differ in what lies beyond the border, which reaches two output pixels."""
    sides = (1, 9 * factor, 8 * factor)
    x = image(1, *sides)
    gap = (KernelDownsampling(sides, factor, offset=(factor - 1) // 2).A(x) - SuperResolution(sides, factor).A(x)).abs()
    assert gap[..., 2:-2, 2:-2].max() < 1e-14
    assert gap.max() > 1e-2
    assert bicubic_kernel(factor).shape[0] == 4 * factor - factor % 2


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 12, 2), (12, 9, 3), (10, 6, 2), (7, 9, 1)])
@pytest.mark.parametrize("gamma", [0.05, 2.0, 1e4])
def test_prox_and_inverse_equal_dense_algebra(height: int, width: int, factor: int, gamma: float) -> None:
    op: LinearOperator = KernelDownsampling((1, height, width), factor, "motion", taps=7, seed=3)
    n = height * width
    A = op.A(torch.eye(n, dtype=torch.float64).reshape(n, 1, height, width)).flatten(1).T
    z, y = image(1, 1, height, width), image(1, 1, height // factor, width // factor)
    system = torch.eye(n, dtype=torch.float64) + gamma * A.T @ A
    expected = torch.linalg.solve(system, z.flatten() + gamma * A.T @ y.flatten())
    assert (op.prox_l2(z, y, gamma).flatten() - expected).norm() < 1e-10 * expected.norm()
    inverse = torch.linalg.pinv(A) @ y.flatten()
    assert (op.A_dagger(y).flatten() - inverse).norm() < 1e-9 * inverse.norm()


def test_without_decimation_it_is_the_circular_blur() -> None:
    x = image(1, 1, 9, 10)
    one, two = KernelDownsampling((1, 9, 10), 1, "disk", radius=2.0), Blur((1, 9, 10), "disk", radius=2.0)
    assert torch.equal(one.A(x), two.A(x))
    assert torch.equal(one.prox_l2(x, 0.5 * x, 3.0), two.prox_l2(x, 0.5 * x, 3.0))


def test_view_enlarges() -> None:
    op = KernelDownsampling((3, 8, 12), 4)
    y = op.A(3 * image(2, 3, 8, 12))
    assert op.view(y).shape == (2, 3, 8, 12)
    assert torch.equal(op.view(y)[..., 1::4, 2::4], y.clamp(-1, 1))


REFUSALS = [
    (lambda: KernelDownsampling((1, 10, 8)), "factor 4 must divide both sides of the image, got 10x8"),
    (lambda: KernelDownsampling((1, 8, 8), 0), "factor.*>= 1, got 0"),
    (lambda: KernelDownsampling((1, 8, 8), 2, offset=2), "0..1, got 2"),
    (lambda: KernelDownsampling((1, 8, 8), 2, std=1.0), "std means nothing for 'bicubic'"),
    (lambda: KernelDownsampling((1, 8, 8), 2, "gaussian", radius=1.0), "radius=1.0 means nothing for 'gaussian'"),
    (lambda: KernelDownsampling((1, 8, 8), 2, "lanczos"), "'lanczos'"),
    (lambda: SuperResolution((1, 9, 8), 2, "decimate"), "factor 2.*9x8"),
    (lambda: SuperResolution((1, 8, 8), 2, "strided"), "average.*bicubic.*decimate.*'strided'"),
]


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_the_value(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        act()
