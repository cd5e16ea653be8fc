"""Colour, exposure, sensing, quantisation and tomography, each against an independent definition."""

import io
import math
from collections.abc import Callable

import deepinv.physics as dinv
import numpy as np
import pytest
import scipy.fft
import torch
from operator_cases.others import CASES
from PIL import Image
from skimage.transform import iradon, radon
from torch import Tensor

from operators import (
    HDR,
    JPEG,
    OPERATORS,
    Colourisation,
    CompressedSensing,
    Demosaicing,
    Identity,
    LinearOperator,
    Operator,
    StructuredSensing,
    Tomography,
    check,
    find,
    generator,
)
from operators.projections.sensing import _LARGEST


def image(*shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=generator(5, "test"), dtype=torch.float64) - 1


def dense(op: Operator) -> Tensor:
    columns = torch.eye(math.prod(op.image_shape), dtype=torch.float64).reshape(-1, *op.image_shape)
    return op.A(columns).flatten(1).T


# -- colour ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "srf"), [("mean", "flat"), ("bt601", [0.299, 0.587, 0.114])])
def test_colourisation_is_deepinvs(weights: str, srf: str | list[float]) -> None:
    op, theirs, x = Colourisation((3, 5, 6), weights), dinv.Decolorize(srf=srf), image(2, 3, 5, 6)
    y = op.A(x)
    assert y.shape == (2, 1, 5, 6)
    assert (y - theirs.A(x)).abs().max() < 1e-7
    # Its prox is not compared: deepinv 0.5 drops the part of z that A does not see.
    assert (op.A_adjoint(y) - theirs.A_adjoint(y)).abs().max() < 1e-7
    assert (op.A_dagger(y) - theirs.A_dagger(y)).abs().max() < 1e-6


def test_grey_of_pillow_and_of_greys() -> None:
    x = image(1, 3, 8, 8)
    picture = ((x[0] + 1) * 127.5).round().byte()
    theirs = np.asarray(Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L")).astype(float)
    ours = (Colourisation((3, 8, 8), "bt601").A(picture[None].double())[0, 0]).numpy()
    assert np.abs(ours - theirs).max() <= 0.51
    for weights in ("mean", "bt601"):
        op = Colourisation((3, 8, 8), weights)
        grey = x[:, :1]
        assert (op.A(grey.expand(-1, 3, -1, -1)) - grey).abs().max() < 1e-15
        assert (op.A(op.A_dagger(grey)) - grey).abs().max() < 1e-15


def test_demosaicing_is_deepinvs() -> None:
    """deepinv knows one pattern, with blue at the top left, and keeps three channels."""
    x = image(2, 3, 6, 8)
    op, theirs = Demosaicing((3, 6, 8), "BGGR"), dinv.Demosaicing((6, 8)).double()
    y = op.A(x)
    assert torch.equal(y, theirs.A(x).sum(1, keepdim=True))
    assert torch.equal(op.A_adjoint(y), theirs.A_adjoint(theirs.A(x)))
    assert (op.prox_l2(x, 2 * y, 3.0) - theirs.prox_l2(x, 2 * theirs.A(x), 3.0)).abs().max() < 1e-15


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_bayer_patterns_read_row_by_row(pattern: str) -> None:
    x = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[None, :, None, None].expand(1, 3, 5, 7)
    y = Demosaicing((3, 5, 7), pattern).A(x)[0, 0]
    expected = np.array([["RGB".index(c) for c in pattern[:2]], ["RGB".index(c) for c in pattern[2:]]])
    assert np.abs(y.numpy() - (np.tile(expected, (3, 4))[:5, :7] + 1) / 10).max() < 1e-15
    assert Demosaicing((3, 5, 7), pattern).view(y[None, None]).shape == (1, 3, 5, 7)


# -- exposure -------------------------------------------------------------------------------------------------------------


def test_hdr_clips_and_its_gradient_vanishes_there() -> None:
    op, x = HDR((1, 4, 4)), image(1, 1, 4, 4)
    assert np.array_equal(op.A(x).numpy(), np.clip(2 * x.numpy(), -1, 1))
    v = torch.ones_like(x)
    assert torch.equal(op.A_vjp(x, v), 2.0 * (x.abs() <= 0.5))
    assert 0 < int((x.abs() <= 0.5).sum()) < 16
    assert torch.equal(HDR((1, 4, 4), scale=1.0).A(x), x)
    assert not op.linear
    assert torch.autograd.gradcheck(op.A, x.clone().requires_grad_())


# -- sensing --------------------------------------------------------------------------------------------------------------


def test_compressed_sensing_is_gaussian_of_unit_gain() -> None:
    op = CompressedSensing((1, 12, 20), measurements=96)
    G = dense(op)
    assert G.shape == (96, 240)
    # 23040 entries: mean and variance are known to 4 sigma within 0.026 and 0.037.
    unit = G * math.sqrt(96)
    assert abs(float(unit.mean())) < 0.027
    assert abs(float(unit.var()) - 1) < 0.038
    assert abs(float((unit**4).mean()) - 3) < 4 * math.sqrt(96 / 23040)
    assert float(torch.linalg.matrix_rank(G)) == 96
    assert torch.equal(op.matrix, CompressedSensing((1, 12, 20), measurements=96).matrix)
    assert not torch.equal(op.matrix, CompressedSensing((1, 12, 20), measurements=96, seed=1).matrix)


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 5, 7), (11,)])
def test_structured_sensing_has_orthonormal_rows_that_spread(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    A = dense(StructuredSensing(shape, measurements=n // 2))
    assert A.shape == (n // 2, n)
    assert (A @ A.T - torch.eye(n // 2)).abs().max() < 1e-14
    # Every entry is (cos + sin) / sqrt(n): no measurement sees a few pixels only.
    assert A.abs().max() <= math.sqrt(2 / n) + 1e-12


def test_structured_sensing_is_a_hartley_transform() -> None:
    op, x = StructuredSensing((2, 4, 5), measurements=17, seed=2), image(3, 2, 4, 5)
    spectrum = scipy.fft.fftn((op.signs * x).numpy(), axes=(1, 2, 3), norm="ortho")
    expected = (spectrum.real - spectrum.imag).reshape(3, -1)[:, op.rows.numpy()]
    assert np.abs(op.A(x).numpy() - expected).max() < 1e-14
    assert len(set(op.rows.tolist())) == 17
    assert set(op.signs.flatten().tolist()) == {-1.0, 1.0}
    other = StructuredSensing((2, 4, 5), measurements=17, seed=3)
    assert not torch.equal(op.rows, other.rows)
    assert not torch.equal(op.signs, other.signs)


# -- quantisation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [5, 50, 90])
def test_jpeg_is_scipys_transform_and_pillows_tables(quality: int) -> None:
    x = image(1, 1, 16, 24)
    buffer = io.BytesIO()
    Image.fromarray(((x[0, 0].numpy() + 1) * 127.5).round().astype(np.uint8)).save(buffer, "jpeg", quality=quality)
    table = np.array(Image.open(buffer).quantization[0]).reshape(8, 8)
    blocks = ((x[0, 0].numpy() + 1) * 127.5 - 128).reshape(2, 8, 3, 8).transpose(0, 2, 1, 3)
    coefficients = np.floor(scipy.fft.dctn(blocks, axes=(2, 3), norm="ortho") / table + 0.501)
    pixels = scipy.fft.idctn(coefficients * table, axes=(2, 3), norm="ortho").transpose(0, 2, 1, 3).reshape(16, 24)
    op = JPEG((1, 16, 24), quality)
    assert np.array_equal(op.tables[0, 0, 0].numpy(), table)
    assert np.abs(op.A(x)[0, 0].numpy() - ((pixels + 128) / 127.5 - 1)).max() < 1e-13


@pytest.mark.parametrize("shape", [(21, 18), (16, 16)])
def test_jpeg_is_pillows_on_a_smooth_picture(shape: tuple[int, int]) -> None:
    """Pillow rounds colours and pixels to bytes and uses an integer transform: up to a byte or two each."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] / 16
    planes = np.stack([np.sin(3 * rows + cols), np.cos(2 * cols), 0.3 * rows * cols - 0.5]) * 90 + 128
    picture = np.clip(planes, 0, 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "jpeg", quality=40, subsampling=0)
    theirs = np.asarray(Image.open(buffer)).transpose(2, 0, 1).astype(float)
    ours = (JPEG((3, *shape), 40).A(torch.from_numpy(picture)[None].double() / 127.5 - 1)[0].numpy() + 1) * 127.5
    off = np.abs(ours.clip(0, 255) - theirs)
    assert off.mean() < 1.0
    assert np.median(off) < 0.8
    assert np.abs(picture - theirs).mean() > 2 * off.mean()


def test_jpeg_gradient_is_straight_through_and_says_so() -> None:
    op, x, v = JPEG((3, 9, 8), quality=10), image(1, 3, 9, 8), image(1, 3, 9, 8).flip(3)
    assert op.straight_through
    assert not HDR((1, 2, 2)).straight_through
    assert not op.linear
    assert (op.A(x) - x).abs().max() > 0.1
    assert (op.A_vjp(x, v) - v).abs().max() < 1e-13
    assert (op.surrogate(x) - x).abs().max() < 1e-13
    # The derivative itself is zero: a small change of x changes nothing.
    assert (op.A(x + 1e-9) - op.A(x)).abs().max() < 1e-12
    names = [law.name for law in check(op)]
    assert "A_vjp is the derivative of the surrogate, not of A" in names
    assert "A_vjp is the derivative" not in names


class HonestJPEG(JPEG):
    """Rounding without saying so."""

    straight_through = False

    def surrogate(self, x: Tensor) -> Tensor:
        return self.A(x)


def test_an_unmarked_straight_through_gradient_is_caught() -> None:
    failed = [law.name for law in check(HonestJPEG((1, 8, 8))) if not law.passed]
    assert failed == ["A_vjp is the derivative"]


def test_jpeg_ties_of_flat_bytes_do_not_depend_on_rounding() -> None:
    """At quality 50 the mean of a flat block of bytes is (p - 128) / 2 table steps: every odd byte is a tie."""
    op = JPEG((1, 8, 8), quality=50)
    x = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None, None, None].expand(-1, 1, 8, 8)
    expected = (np.floor((np.arange(256) - 128) / 2 + 0.5) * 2 + 128) / 127.5 - 1
    for dtype in (torch.float64, torch.float32):
        assert np.abs(op.A(x.to(dtype))[:, 0].double().mean((1, 2)).numpy() - expected).max() < 1e-5


# -- tomography -----------------------------------------------------------------------------------------------------------


def phantom(n: int) -> np.ndarray:
    rows, cols = np.mgrid[:n, :n] / n - (n - 1) / (2 * n)
    blobs = ((1.0, 0.06, -0.12, 0.10), (-0.5, -0.14, 0.07, 0.08), (0.7, 0.1, 0.18, 0.07))
    return sum(a * np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / (2 * w**2)) for a, r, c, w in blobs)


@pytest.mark.parametrize(("first", "last"), [(0.0, 180.0), (-30.0, 100.0)])
@pytest.mark.parametrize("circle", [True, False], ids=["as many detectors as pixels", "diagonal"])
@pytest.mark.parametrize("n", [63, 64, 65, 66])
def test_tomography_is_skimages_radon(n: int, circle: bool, first: float, last: float) -> None:
    """For even and odd sides and detectors, with no centre given; half a pixel would be a difference of 0.06."""
    rows, cols = np.mgrid[:n, :n] - n // 2
    x = phantom(n) * (rows**2 + cols**2 < (n // 2 - 1) ** 2)
    angles = first + np.arange(26) * (last - first) / 26
    expected = radon(x, theta=angles, circle=circle).T
    op = Tomography((1, n, n), views=26, first=first, last=last, detectors=expected.shape[1], pixel=1.0)
    y = op.A(torch.from_numpy(x)[None, None])
    assert np.linalg.norm(y[0, 0].numpy() - expected) < 2e-3 * np.linalg.norm(expected)
    listed = Tomography((1, n, n), angles=angles.tolist(), detectors=expected.shape[1], pixel=1.0)
    assert torch.allclose(listed.A(torch.from_numpy(x)[None, None]), y, rtol=0, atol=1e-9)
    assert torch.allclose(listed.fbp(y), op.fbp(y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [64, 65])
def test_a_sinogram_of_skimage_is_inverted(n: int) -> None:
    """To the difference between the two ways of integrating, by least squares (regularised) and, to its own error, by `fbp`."""
    x = phantom(n)
    angles = np.arange(60) * 3.0
    y = radon(x, theta=angles, circle=False).T
    op = Tomography((1, n, n), views=60, detectors=y.shape[1], pixel=1.0)
    found = op.prox_l2(0.0, torch.from_numpy(y)[None, None], 0.03)[0, 0].numpy()
    assert np.linalg.norm(found - x) < 0.07 * np.linalg.norm(x)
    theirs = iradon(y.T, theta=angles, filter_name="ramp", circle=False, output_size=n)
    ours = op.fbp(torch.from_numpy(y)[None, None])[0, 0].numpy()
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


@pytest.mark.parametrize(("centre", "axis"), [([31.5, 31.5], 45.5), ([20.0, 40.25], 50.0), (None, None)])
def test_tomography_of_a_gaussian_is_its_integral(centre: list[float] | None, axis: float | None) -> None:
    """exp(-r^2 / 2w^2) off centre integrates to sqrt(2 pi) w exp(-(t - t0)^2 / 2w^2) along every line, lengths in image sides."""
    n, w, row, column = 64, 0.08, 37.9, 41.1
    place = torch.arange(n, dtype=torch.float64)
    x = torch.exp(-((place - column) ** 2 + (place[:, None] - row) ** 2) / (2 * (w * n) ** 2))
    op = Tomography((1, n, n), views=31, centre=centre, axis=axis)
    angles = torch.deg2rad(torch.arange(31, dtype=torch.float64) * 180 / 31)
    assert op.detectors == 92
    (at_row, at_column), zero = centre or [32, 32], 46 if axis is None else axis
    t = (torch.arange(92, dtype=torch.float64) - zero) / n
    middle = ((column - at_column) * angles.cos() + (at_row - row) * angles.sin()) / n
    expected = math.sqrt(2 * math.pi) * w * torch.exp(-((t - middle[:, None]) ** 2) / (2 * w**2))
    y = op.A(x[None, None])
    assert (y[0, 0] - expected).norm() < 3e-3 * expected.norm()
    v = image(1, *op.measurement_shape)
    assert abs(float((y * v).sum() - (x * op.A_adjoint(v)).sum())) < 1e-12 * float(y.norm() * v.norm())


def test_constant_images_keep_to_the_stated_range() -> None:
    y = Tomography((1, 32, 32), views=40).A(torch.ones(1, 1, 32, 32, dtype=torch.float64))
    assert 0.98 < float(y[0, 0, 0].max()) < 1.01
    assert 1.36 < float(y.max()) < 1.42
    assert float(y[0, 0, 0, 0]) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adjoint_of_tomography_at_a_real_size(dtype: torch.dtype) -> None:
    """Over several chunks of views, and with detectors that miss the corners."""
    for op in (Tomography((2, 64, 64), views=90), Tomography((1, 65, 65), views=37, first=20, last=75, detectors=40)):
        x = image(3, *op.image_shape).to(dtype)
        v = image(3, *op.measurement_shape).to(dtype)
        y = op.A(x)
        assert y.dtype == dtype
        gap = (y.double() * v.double()).sum() - (x.double() * op.A_adjoint(v).double()).sum()
        assert abs(float(gap)) < (1e-13 if dtype == torch.float64 else 1e-6) * float(y.norm() * v.norm())
        assert (y.double() - op.A(x.double())).norm() < 1e-5 * y.norm()


def test_fbp_inverts_dense_views_as_skimage_does() -> None:
    x = torch.from_numpy(phantom(64))
    op = Tomography((1, 64, 64), views=120)
    y = op.A(x[None, None])
    ours = op.fbp(y)[0, 0]
    assert (ours - x).norm() < 0.01 * x.norm()
    theirs = iradon(y[0, 0].numpy().T * 64, theta=np.arange(120) * 1.5, output_size=64, filter_name="ramp", circle=False)
    assert (ours - x).norm() < np.linalg.norm(theirs - x.numpy())
    few = Tomography((1, 64, 64), views=10)
    assert (few.fbp(few.A(x[None, None]))[0, 0] - x).norm() > 3 * (ours - x).norm()
    assert op.fbp(y.float()).dtype == torch.float32


def test_limited_angle_sees_half_of_the_directions() -> None:
    """Stripes whose lines of constancy no view follows are almost invisible, those that one follows are not."""
    stripes = torch.sin(torch.arange(32, dtype=torch.float64) * math.pi / 2).expand(32, 32)[None, None]
    op = Tomography((1, 32, 32), views=20, first=-30, last=30)
    assert float(op.A(stripes).norm()) > 10 * float(op.A(stripes.mT).norm())


def test_view_is_a_scaled_sinogram() -> None:
    op = Tomography((1, 16, 16), views=5)
    seen = op.view(op.A(image(2, 1, 16, 16)))
    assert seen.shape == (2, 1, 5, 24)
    assert seen.abs().amax((1, 2, 3)).tolist() == [1.0, 1.0]


# -- all ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "closed"), [("colourisation", True), ("demosaicing", True), ("structured sensing", True), ("tomography", False)]
)
def test_closed_forms_are_claimed(name: str, closed: bool) -> None:
    op = CASES[name]()
    assert isinstance(op, LinearOperator)
    assert op.closed_form is closed
    assert op.closed_form_inverse is closed


def test_denoising_is_the_identity() -> None:
    assert find(OPERATORS, "denoising") is Identity


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: Colourisation((3, 4, 4), "luma"), "'mean' or 'bt601', got 'luma'"),
    (lambda: Colourisation((4, 4, 4), "bt601"), r"3 channels.*\(4, 4, 4\)"),
    (lambda: Demosaicing((3, 4, 4), "RGBG"), "RGGB, BGGR, GRBG, GBRG, got 'RGBG'"),
    (lambda: Demosaicing((1, 4, 4)), r"3 channels.*\(1, 4, 4\)"),
    (lambda: HDR((1, 4, 4), scale=0.0), "scale.*0.0"),
    (lambda: CompressedSensing((1, 4, 4), measurements=17), "from 1 to 16.*17"),
    (lambda: CompressedSensing((3, 128, 128), measurements=1000), f"1000 x 49152 exceeds {_LARGEST}.*structured_sensing"),
    (lambda: StructuredSensing((1, 4, 4), measurements=0), "from 1 to 16.*0"),
    (lambda: JPEG((1, 8, 8), quality=0), "1 to 100, got 0"),
    (lambda: JPEG((2, 8, 8)), r"1 or 3 channels.*\(2, 8, 8\)"),
    (lambda: Tomography((1, 8, 9)), "square.*8x9"),
    (lambda: Tomography((1, 8, 8), views=0), "views.*0"),
    (lambda: Tomography((1, 8, 8), detectors=0), "detectors.*0"),
    (lambda: Tomography((1, 8, 8), first=90, last=90), "first=90, last=90"),
    (lambda: Tomography((1, 8, 8), pixel=0.0), "pixel.*0.0"),
    (lambda: Tomography((1, 8, 8), views=4, angles=[0.0, 90.0]), "angles are given, so views=4"),
    (lambda: Tomography((1, 8, 8), angles=[0.0, math.nan]), "angles must be finite.*nan"),
    (lambda: Tomography((1, 8, 8), angles=[]), "one for each view"),
    (lambda: Tomography((1, 8, 8), centre=[4.0]), r"\[row, column\].*\[4.0\]"),
    (lambda: Tomography((1, 8, 8), axis=math.inf), "axis.*inf"),
    (lambda: Tomography((1, 8, 8), views=3).fbp(torch.zeros(1, 1, 8, 8)), r"y of shape \(B, 1, 3, 12\), got \(1, 1, 8, 8\)"),
]


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_the_value(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        act()
