"""Kernels, boundaries and blurs against scipy, deepinv and dense algebra."""

import math
from collections.abc import Callable
from pathlib import Path

import deepinv.physics as dinv
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from PIL import Image
from torch import Tensor

from operators import Blur, GaussianBlur, NonlinearBlur, SpaceVaryingBlur, generator
from operators.blur.convolution import CircularConvolution, from_hartley, to_hartley, window
from operators.blur.kernels import disk_kernel, gaussian_kernel, gaussian_taps, motion_kernel, uniform_kernel
from operators.blur.nonlinear_blur import smooth_power
from operators.blur.spacevarying import smooth_windows
from operators.blur.superresolution import KernelDownsampling


def image(*shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=generator(3, "test"), dtype=torch.float64) - 1


KERNELS = {"odd": image(5, 7), "even": image(4, 6), "mixed": image(1, 4), "motion": motion_kernel(9, 0.8, 1), "one": image(1, 1)}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("reflect", "mirror"), ("zero", "constant")])
@pytest.mark.parametrize("sides", [(12, 17), (9, 10)])
def test_blur_is_scipys_convolution(name: str, boundary: str, mode: str, sides: tuple[int, int]) -> None:
    x, kernel = image(2, 3, *sides), KERNELS[name]
    expected = scipy.ndimage.convolve(x.numpy(), kernel.numpy()[None, None], mode=mode)
    assert np.abs(Blur((3, *sides), kernel=kernel, boundary=boundary).A(x).numpy() - expected).max() < 1e-13


@pytest.mark.parametrize("name", KERNELS)
def test_valid_blur_is_scipys(name: str) -> None:
    x, kernel = image(12, 17), KERNELS[name]
    y = Blur((1, 12, 17), kernel=kernel, boundary="valid").A(x[None, None])
    expected = scipy.signal.convolve2d(x, kernel, mode="valid")
    assert y.shape[2:] == expected.shape
    assert np.abs(y[0, 0].numpy() - expected).max() < 1e-13


def test_kernels_larger_than_the_image() -> None:
    """A periodic image repeats as often as needed; scipy on an image tiled far beyond the kernel."""
    x, kernel = image(5, 6), image(17, 20)
    tiled = scipy.ndimage.convolve(np.tile(x, (9, 9)), kernel.numpy(), mode="constant")[20:25, 24:30]
    assert np.abs(CircularConvolution((1, 5, 6), kernel).A(x[None, None])[0, 0].numpy() - tiled).max() < 1e-12


def test_it_is_a_convolution_not_a_correlation() -> None:
    kernel, x = image(5, 7), torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    x[..., 7, 7] = 1
    for boundary in ("circular", "reflect", "zero"):
        y = Blur((1, 15, 15), kernel=kernel, boundary=boundary).A(x)
        assert (y[0, 0, 5:10, 4:11] - kernel).abs().max() < 1e-14


@pytest.mark.parametrize("sides", [(8, 9), (7, 6)])
def test_circular_blur_is_deepinvs(sides: tuple[int, int]) -> None:
    kernel = image(3, 5)
    x = image(2, 1, *sides)
    theirs = dinv.BlurFFT((1, *sides), filter=kernel[None, None].float())
    ours = Blur((1, *sides), kernel=kernel)
    assert (ours.A(x).float() - theirs.A(x.float())).abs().max() < 1e-5
    assert (ours.prox_l2(x, 0.3 * x, 2.0).float() - theirs.prox_l2(x.float(), 0.3 * x.float(), 2.0)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("boundary", "padding"), [("circular", "circular"), ("reflect", "reflect"), ("valid", "valid"), ("zero", "constant")]
)
def test_every_boundary_and_its_adjoint_are_deepinvs(boundary: str, padding: str) -> None:
    kernel, x = image(3, 5), image(2, 1, 9, 8)
    theirs = dinv.Blur(kernel[None, None], padding=padding)
    ours = Blur((1, 9, 8), kernel=kernel, boundary=boundary)
    y = ours.A(x)
    assert (y - theirs.A(x)).abs().max() < 1e-13
    assert (ours.A_adjoint(y) - theirs.A_adjoint(y)).abs().max() < 1e-12


@pytest.mark.parametrize("boundary", ["circular", "reflect", "zero", "valid"])
def test_gaussian_blur_is_the_separable_blur(boundary: str) -> None:
    x = image(1, 3, 20, 17)
    one, two = GaussianBlur((3, 20, 17), 1.3, boundary=boundary), Blur((3, 20, 17), "gaussian", boundary, std=1.3)
    assert (one.A(x) - two.A(x)).abs().max() < 1e-14
    z, y = image(1, 3, 20, 17), one.A(x)
    assert one.closed_form
    assert two.closed_form == (boundary == "circular")
    assert (one.prox_l2(z, y, 5.0) - two.prox_l2(z, y, 5.0)).abs().max() < 1e-9


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 10, 1), (7, 9, 1), (8, 7, 1), (8, 12, 2), (9, 15, 3), (10, 6, 2), (5, 1, 1)])
def test_the_circular_decomposition_is_one(height: int, width: int, factor: int) -> None:
    """U and V have orthonormal columns in the plain inner product, which half spectra alone would not give."""
    op = CircularConvolution((1, height, width), image(3, 4), factor)
    n = height * width // factor**2
    unit = torch.eye(n, dtype=torch.float64).reshape(n, 1, height // factor, width // factor)
    left, right = op._left(unit).flatten(1), op._right(unit).flatten(1)
    assert (left @ left.T - torch.eye(n)).abs().max() < 1e-13
    assert (right @ right.T - torch.eye(n)).abs().max() < 1e-13
    x = image(1, 1, height, width)
    s = op._singular_values(x)
    assert (op._left(s * op._right_adjoint(x)) - op.A(x)).abs().max() < 1e-13
    probe = op._right_adjoint(x)
    assert abs(float((probe * unit[:1]).sum() - (x * op._right(unit[:1])).sum())) < 1e-13
    c = op._left_adjoint(image(1, 1, height // factor, width // factor))
    assert (op._left_adjoint(op._left(c)) - c).abs().max() < 1e-13


def test_hartley_is_its_definition() -> None:
    for sides in ((6, 8), (5, 7), (4, 1)):
        x = image(*sides)
        full = torch.fft.fft2(x, norm="ortho")
        c = to_hartley(torch.fft.rfft2(x, norm="ortho"), sides[1])
        assert (c - (full.real - full.imag)).abs().max() < 1e-14
        assert (from_hartley(c, sides[1]) - full).abs().max() < 1e-14


def test_motion_kernels() -> None:
    for seed in range(12):
        kernel = motion_kernel(31, 0.5, seed)
        assert kernel.shape == (31, 31)
        assert float(kernel.min()) >= 0
        assert abs(float(kernel.sum()) - 1) < 1e-14
        # The blur does not move the image, and light stays near a curve of 30 pixels.
        at = torch.arange(31, dtype=torch.float64) - 15
        assert abs(float((kernel.sum(1) * at).sum())) < 1e-10
        assert abs(float((kernel.sum(0) * at).sum())) < 1e-10
        assert 15 < int((kernel > 0).sum()) < 4 * 31
        assert not torch.equal(kernel, motion_kernel(31, 0.5, seed + 1))
        assert torch.equal(kernel, motion_kernel(31, 0.5, seed))


def test_intensity_bends_the_path() -> None:
    """The distance between the ends of a path of fixed length falls from that length as it bends."""

    def spread(intensity: float) -> float:
        at = torch.arange(41, dtype=torch.float64) - 20
        moments = []
        for seed in range(20):
            kernel = motion_kernel(41, intensity, seed)
            moments.append(float((kernel * (at**2 + at[:, None] ** 2)).sum()))
        return math.sqrt(sum(moments) / len(moments))

    straight = 40 / math.sqrt(12)
    assert spread(1e-6) == pytest.approx(straight, rel=0.01)
    assert spread(0.3) < 0.95 * straight
    assert spread(1.0) < 0.75 * spread(0.3)


def test_disk_is_the_area_of_each_pixel_in_the_circle() -> None:
    for radius in (0.3, 0.5, 1.0, 2.37, 4.5):
        kernel = disk_kernel(radius)
        side = kernel.shape[0]
        assert side == 2 * max(math.ceil(radius - 0.5), 0) + 1
        fine = 400
        at = (torch.arange(side * fine, dtype=torch.float64) + 0.5) / fine - side / 2
        inside = (at**2 + at[:, None] ** 2 <= radius**2).double()
        counted = inside.reshape(side, fine, side, fine).mean((1, 3)) / (math.pi * radius**2)
        assert abs(float(kernel.sum()) - 1) < 1e-13
        assert (kernel - counted).abs().max() < 2e-3 / max(radius, 1) ** 2 / min(radius, 1) ** 2


def test_gaussian_kernel_turns_counter_clockwise() -> None:
    assert (gaussian_kernel(1.3) - torch.outer(gaussian_taps(1.3), gaussian_taps(1.3))).abs().max() < 1e-16
    kernel = gaussian_kernel([4.0, 1.5], angle=30.0)
    at = torch.arange(kernel.shape[0], dtype=torch.float64) - kernel.shape[0] // 2
    x, up = at, -at[:, None]
    moments = [float((kernel * value).sum()) for value in (x * x + 0 * up, x * up, up * up + 0 * x)]
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    expected = [16 * cos**2 + 2.25 * sin**2, (16 - 2.25) * cos * sin, 16 * sin**2 + 2.25 * cos**2]
    assert moments == pytest.approx(expected, rel=5e-3)
    assert gaussian_kernel([4.0, 1.5], taps=9).shape == (9, 9)


def test_kernel_files(tmp_path: Path) -> None:
    """Grey values have no scale, so pictures are divided by their sum; numbers have to sum to 1, or normalise says what is meant."""
    grey = (255 * torch.rand(5, 7, generator=generator(0, "test"))).to(torch.uint8)
    one = grey.double() / grey.double().sum()
    Image.fromarray(grey.numpy()).save(tmp_path / "kernel.png")
    np.save(tmp_path / "kernel.npy", grey.numpy().astype(np.float32))
    np.save(tmp_path / "one.npy", one.numpy().astype(np.float32))
    for name, normalise, expected in (
        ("kernel.png", None, one), ("kernel.png", True, one), ("kernel.png", False, grey.double() / 255),
        ("kernel.npy", True, one), ("kernel.npy", False, grey.double()), ("one.npy", None, one.float().double()),
    ):  # fmt: skip
        kernel = Blur((1, 12, 12), kernel=str(tmp_path / name), normalise=normalise).kernel
        assert (kernel - expected).abs().max() < 1e-15, (name, normalise)
    for make in (Blur, KernelDownsampling):
        with pytest.raises(ValueError, match=rf"kernel\.npy sums to {int(grey.sum())}, .*normalise=true divides.*normalise=false"):
            make((1, 12, 12), kernel=tmp_path / "kernel.npy")


def test_blurs_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    x = image(1, 1, 20, 20)
    builders: list[Callable[[int], object]] = [
        lambda seed: Blur((1, 20, 20), taps=9, seed=seed).A(x),
        lambda seed: SpaceVaryingBlur((1, 20, 20), taps=9, seed=seed).A(x),
        lambda seed: SpaceVaryingBlur((1, 20, 20), "gaussian", seed=seed).A(x),
        lambda seed: NonlinearBlur((1, 20, 20), taps=9, seed=seed).A(x),
    ]
    for build in builders:
        assert torch.equal(build(4), build(4))
        assert (build(4) - build(5)).abs().max() > 1e-3
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("boundary", "padding"), [("circular", "circular"), ("reflect", "reflect"), ("valid", "valid")])
def test_space_varying_blur_is_deepinvs(boundary: str, padding: str) -> None:
    bank, x = image(4, 3, 5), image(2, 1, 9, 10)
    ours = SpaceVaryingBlur((1, 9, 10), kernel=bank, grid=2, boundary=boundary)
    theirs = dinv.SpaceVaryingBlur(filters=bank[None, None], multipliers=ours.windows[None, None], padding=padding)
    y = ours.A(x)
    assert (y - theirs.A(x)).abs().max() < 1e-13
    assert (ours.A_adjoint(y) - theirs.A_adjoint(y)).abs().max() < 1e-13


def test_space_varying_blur_blends_the_kernels_of_its_net() -> None:
    windows = smooth_windows(33, 3)
    assert (windows.sum(0) - 1).abs().max() < 1e-15
    assert torch.equal(windows[:, [0, 16, 32]], torch.eye(3, dtype=torch.float64))
    assert windows.diff(dim=1).abs().max() < 0.1
    op = SpaceVaryingBlur((1, 33, 33), grid=3, boundary="zero", taps=9)
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1
    assert (op.A(x)[0, 0, 12:21, 12:21] - op.kernels[4]).abs().max() < 1e-14
    x = image(1, 1, 33, 33)
    one = SpaceVaryingBlur((1, 33, 33), kernel=op.kernels[:1], grid=1, boundary="reflect")
    assert (one.A(x) - Blur((1, 33, 33), kernel=op.kernels[0], boundary="reflect").A(x)).abs().max() < 1e-13


def test_nonlinear_blur_bleeds_lights_as_light_does() -> None:
    """A bright point on black, seen through a mean of 3 x 3: its ninth of the light, gamma-encoded, not its ninth."""
    x = -torch.ones(1, 1, 9, 9, dtype=torch.float64)
    x[..., 4, 4] = 1
    op = NonlinearBlur((1, 9, 9), kernel=uniform_kernel(3), gamma=2.2)
    seen = (op.A(x)[0, 0, 4, 4] + 1) / 2
    assert float(seen) == pytest.approx((1 / 9) ** (1 / 2.2), rel=1e-2)
    assert float(seen) > 3 / 9
    assert float(op.A(x)[0, 0, 0, 0]) == pytest.approx(-1, abs=1e-12)


def test_nonlinear_blur_is_nearly_the_identity_for_flat_images_and_saturates() -> None:
    op = NonlinearBlur((1, 8, 8), taps=5)
    for value in (-0.8, -0.3, 0.2, 0.5):
        flat = torch.full((1, 1, 8, 8), value, dtype=torch.float64)
        assert float((op.A(flat) - value).abs().max()) < 0.02
    bright = NonlinearBlur((1, 8, 8), taps=5, exposure=4.0)
    assert float(bright.A(torch.ones(1, 1, 8, 8, dtype=torch.float64)).min()) == pytest.approx(1, abs=1e-5)
    up = bright.A(torch.linspace(-1, 3, 200, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 8, 8))[:, 0, 4, 4]
    assert float(up.diff().min()) > -1e-12
    assert float(up.max()) < 1.001


def test_nonlinear_blur_is_smooth_on_all_reals() -> None:
    op = NonlinearBlur((1, 4, 4), taps=3, exposure=1.5)
    x = (3 * image(1, 1, 4, 4)).requires_grad_()
    assert torch.autograd.gradcheck(op.A, (x,), atol=1e-7)
    assert torch.autograd.gradgradcheck(op.A, (x,), atol=1e-5)
    for dtype in (torch.float32, torch.float64):
        for value in (0.0, -1.0, 1.0, 300.0, -300.0, 1e5):
            for spread in (0.0, 1.0):
                u = (value + spread * image(1, 1, 4, 4)).to(dtype).requires_grad_()
                (grad,) = torch.autograd.grad(op.A(u).sum(), u)
                assert bool(grad.isfinite().all())
                assert float(grad.abs().max()) < 100
    v = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    assert float(smooth_power(v, 2.2, 0.05).diff().min()) > 0
    assert float(smooth_power(torch.ones((), dtype=torch.float64), 2.2, 0.05)) == 1


REFUSALS = [
    (lambda: Blur((8, 8)), r"3 entries.*\(8, 8\)"),
    (lambda: Blur((1, 8, 8), kernel="box"), "disk.*gaussian.*motion.*uniform.*'box'"),
    (lambda: Blur((1, 8, 8), boundary="mirror"), "circular, reflect, zero, valid.*'mirror'"),
    (lambda: Blur((1, 8, 8), taps=8), "odd and positive.*8"),
    (lambda: Blur((1, 8, 8), taps=5, intensity=0.0), r"\(0, 1\], got 0.0"),
    (lambda: Blur((1, 8, 8), std=2.0), "std=2.0 means nothing for 'motion', which takes: taps, intensity"),
    (lambda: Blur((1, 8, 8), kernel="uniform", taps=0), ">= 1, got 0"),
    (lambda: Blur((1, 8, 8), kernel="gaussian", std=[1.0, 2.0, 3.0]), r"\[along, across\].*\[1.0, 2.0, 3.0\]"),
    (lambda: Blur((1, 8, 8), kernel="gaussian", std=-1.0), "std.*-1.0"),
    (lambda: Blur((1, 8, 8), kernel="disk", radius=0.0), "radius.*0.0"),
    (lambda: Blur((1, 8, 8), kernel="disk", normalise=True), "normalise=True means nothing for 'disk'"),
    (lambda: Blur((1, 8, 8), kernel="/nowhere.npy"), "no kernel file at /nowhere.npy"),
    (lambda: Blur((1, 8, 8), kernel=__file__), "test_blur.py is neither a .npy file of numbers nor .* an image"),
    (lambda: Blur((1, 8, 8), kernel=torch.ones(3, 3, 3)), r"\(kh, kw\).*\(3, 3, 3\)"),
    (lambda: Blur((1, 8, 8), kernel=torch.zeros(3, 3)), "other than 0"),
    (lambda: Blur((1, 8, 8), kernel=torch.full((2, 2), torch.nan)), "finite.*4 bad"),
    (lambda: Blur((1, 8, 8), kernel=torch.ones(2, 2, dtype=torch.cfloat)), "real and finite, got torch.complex64"),
    (lambda: Blur((1, 8, 8), kernel=torch.tensor([[1.0, -1.0]]), normalise=True), "sums to 0"),
    (lambda: Blur((1, 8, 8), taps=9), "9x9 is larger than the image of 8x8"),
    (lambda: Blur((1, 8, 8), boundary="zero", taps=9), "9x9 is larger than the image of 8x8"),
    (lambda: Blur((1, 8, 8), boundary="valid", taps=9), "9x9 is larger than the image of 8x8"),
    (lambda: Blur((1, 16, 8), boundary="reflect", taps=17), "17x17 reaches too far to reflect an image of 16x8.*exceed 8"),
    (lambda: GaussianBlur((1, 8, 8), boundary="valid"), "at least the kernel's 25 taps, got 8"),
    (lambda: SpaceVaryingBlur((1, 8, 8), grid=0), "grid.*0"),
    (lambda: SpaceVaryingBlur((1, 8, 8), kernel="box"), "'motion', 'gaussian', 'disk'.*'box'"),
    (lambda: SpaceVaryingBlur((1, 8, 8), kernel=torch.ones(3, 3, 3), grid=2), r"\(4, kh, kw\).*\(3, 3, 3\)"),
    (lambda: SpaceVaryingBlur((1, 8, 8), boundary="valid"), "31x31 is larger"),
    (lambda: NonlinearBlur((1, 8, 8)), "31x31 reaches too far"),
    (lambda: NonlinearBlur((1, 8, 8), taps=3, gamma=0.0), "gamma.*0.0"),
    (lambda: NonlinearBlur((1, 8, 8), taps=3, exposure=math.inf), "exposure.*inf"),
    (lambda: window((8, 8), (3, 3), "replicate"), "'replicate'"),
    (lambda: Blur((3, 8, 8), taps=3).A(torch.zeros(1, 1, 8, 8)), r"x of shape \(B, 3, 8, 8\), got \(1, 1, 8, 8\)"),
    (lambda: Blur((1, 8, 8), taps=3, boundary="valid").A_adjoint(torch.zeros(1, 1, 8, 8)), r"y of shape \(B, 1, 6, 6\)"),
]


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_the_value(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        act()
