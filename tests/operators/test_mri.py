"""MRI: against numpy and deepinv, the masks, the coils, the classical reconstructions and what is refused."""

import math
from pathlib import Path

import deepinv
import numpy as np
import pytest
import torch
from operator_cases import rand
from torch import Tensor

from operators import MRI, MultiCoilMRI, check, to_channels, to_complex
from operators.core.spectral import SpectralOperator
from operators.mri.baselines import joint_variation, sense, total_variation, zero_filled
from operators.mri.coils import birdcage_maps, smooth_maps
from operators.mri.masks import KINDS, disc_radius, sampling_mask

LINES = ("equispaced", "random", "gaussian")


def numpy_fft(z: np.ndarray) -> np.ndarray:
    """The transform by its definition, as two matrix products."""
    out = z
    for axis in (-2, -1):
        n = z.shape[axis]
        k = np.arange(n) - n // 2
        matrix = np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return out


def numpy_fft_by_library(z: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(z, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))


@pytest.mark.parametrize("sides", [(6, 8), (7, 9)])
@pytest.mark.parametrize("transform", [numpy_fft, numpy_fft_by_library])
def test_single_coil_equals_numpy(sides: tuple[int, int], transform: object) -> None:
    op = MRI((2, *sides), kind="random", acceleration=2, centre_fraction=0.2)
    x = rand(3, 2, *sides) - 0.5
    y = op.mask[0].numpy() * transform(to_complex(x).numpy())
    assert (to_complex(op.A(x)) - torch.from_numpy(y)).abs().max() < 1e-14


def test_multicoil_equals_numpy() -> None:
    op = MultiCoilMRI((2, 7, 6), kind="poisson", acceleration=2, coils="smooth", n_coils=3, seed=4)
    x = rand(2, 2, 7, 6) - 0.5
    maps = op.maps[0].numpy() + 1j * op.maps[1].numpy()
    y = op.mask[0].numpy() * numpy_fft(maps * to_complex(x).numpy()[:, None])
    assert (to_complex(op.A(x)) - torch.from_numpy(y)).abs().max() < 1e-14


@pytest.mark.parametrize("sides", [(8, 6), (7, 9)])
def test_equals_deepinv(sides: tuple[int, int]) -> None:
    mask = sampling_mask("gaussian_2d", *sides, acceleration=2)
    x = (rand(2, 2, *sides) - 0.5).float()
    ours, theirs = MRI((2, *sides), kind="file", mask=mask), deepinv.physics.MRI(mask=mask.float(), img_size=sides)
    y = ours.A(x)
    assert (y - theirs.A(x)).abs().max() < 1e-6
    assert (ours.A_adjoint(y) - theirs.A_adjoint(y)).abs().max() < 1e-6
    assert (ours.prox_l2(x, y, 3.0) - theirs.prox_l2(x, y, 3.0)).abs().max() < 1e-5
    maps = smooth_maps(3, *sides)
    coils = MultiCoilMRI((2, *sides), kind="file", mask=mask, coils="file", coil_maps=maps)
    foreign = deepinv.physics.MultiCoilMRI(mask=mask.float(), coil_maps=maps.cfloat(), img_size=sides)
    y = coils.A(x)
    assert (y - foreign.A(x)).abs().max() < 1e-6
    assert (coils.A_adjoint(y) - foreign.A_adjoint(y)).abs().max() < 1e-6


@pytest.mark.parametrize("sides", [(8, 6), (7, 10), (5, 9)])
def test_the_fast_prox_is_the_spectral_one(sides: tuple[int, int]) -> None:
    op = MRI((2, *sides), kind="gaussian_2d", acceleration=2)
    z, y = rand(3, 2, *sides) - 0.5, rand(2, 3, *sides).transpose(0, 1) - 0.5
    for gamma in (0.0, 0.7, torch.tensor([[[[0.1]]], [[[3.0]]], [[[1e4]]]], dtype=torch.float64)):
        assert (op.prox_l2(z, y, gamma) - SpectralOperator._prox(op, z, y, gamma)).abs().max() < 1e-14


def test_full_sampling_is_inverted_and_the_noise_is_of_image_units() -> None:
    x = rand(2, 2, 12, 10) - 0.5
    for op in (MRI((2, 12, 10), kind="full"), MultiCoilMRI((2, 12, 10), kind="full", n_coils=5)):
        assert (op.A_adjoint(op.A(x)) - x).abs().max() < 1e-14
        assert op.acceleration == 1.0
    noise = MRI((2, 64, 64)).measure(torch.zeros(4, 2, 64, 64), noise=0.1)
    assert noise[noise != 0].std() == pytest.approx(0.1, rel=0.02)
    assert (noise != 0).sum() == 4 * MRI((2, 64, 64)).measured


def test_runs_inside_transforms_inference_autocast_and_half_precision() -> None:
    for op in (MRI((2, 6, 8)), MultiCoilMRI((2, 6, 8), n_coils=2)):
        x = rand(3, 2, 6, 8).float()
        y = op.A(x)
        one = torch.func.vmap(lambda t, op=op: op.A(t[None])[0])(x)
        assert (one - y).abs().max() < 1e-6
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(op.A(x), y)
        assert op.A(x.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(op.A(x.bfloat16()), op.A(x.bfloat16().float()).bfloat16())


# -- masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("acceleration", "fraction"), [(4, 0.08), (8, 0.04), (2.5, 0.0)])
@pytest.mark.parametrize("sides", [(64, 96), (63, 65)])
def test_acceleration_centre_and_seed(kind: str, acceleration: float, fraction: float, sides: tuple[int, int]) -> None:
    height, width = sides
    mask = sampling_mask(kind, height, width, acceleration, fraction, seed=1)
    assert mask.shape == sides and set(mask.unique().tolist()) == {0.0, 1.0}
    if kind in LINES:
        assert mask[0].sum() == round(width / acceleration) and torch.equal(mask, mask[:1].expand_as(mask))
    elif kind == "radial":
        # To the nearest spoke: half of one, which has at most as many points as the longer side.
        assert abs(mask.sum() - height * width / acceleration) <= max(sides) / 2 + 1
    else:
        assert mask.sum() == round(height * width / acceleration)
    block = mask[:, :] if kind in LINES else mask[height // 2 - round(fraction * height) // 2 :][: round(fraction * height)]
    first = width // 2 - round(fraction * width) // 2
    assert block[:, first : first + round(fraction * width)].all()
    assert torch.equal(mask, sampling_mask(kind, height, width, acceleration, fraction, seed=1))
    assert not torch.equal(mask, sampling_mask(kind, height, width, acceleration, fraction, seed=2))


def test_equispaced_lines_are_equispaced() -> None:
    line = sampling_mask("equispaced", 4, 120, 4, 0.0)[0].nonzero()[:, 0]
    assert line.diff().unique().tolist() == [4]
    steps = sampling_mask("equispaced", 4, 128, 4, 0.08)[0].nonzero()[:, 0].diff().tolist()
    # 22 lines among the 118 outside the centre of 10, the first of them 5.36 apart; two gaps touch the centre.
    assert steps.count(1) >= 9 and sum(step not in (1, 5, 6) for step in steps) <= 2


def test_gaussian_masks_prefer_low_frequencies() -> None:
    for kind in ("gaussian", "gaussian_2d"):
        mask = torch.stack([sampling_mask(kind, 64, 64, 4, 0.04, seed) for seed in range(20)]).mean(0)
        quarter = mask[:, 24:40].mean()
        assert quarter > 3 * mask[:, :8].mean() > 0


@pytest.mark.parametrize("acceleration", [4, 8])
def test_poisson_discs_keep_their_distance(acceleration: int) -> None:
    height, width = 48, 64
    mask = sampling_mask("poisson", height, width, acceleration, 0.0, seed=3)
    at = mask.nonzero().double()
    apart = torch.cdist(at, at) + 1e9 * torch.eye(len(at), dtype=torch.float64)
    radius = torch.from_numpy(disc_radius(height, width))[mask.bool()]
    # The unit of the radius is the only unknown; with it no pair is nearer than the smaller of its two radii.
    ratio = (apart / torch.minimum(radius[:, None], radius)).min()
    uniform = torch.rand(len(at), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([height, width])
    assert ratio > 0.8 * {4: 0.7, 8: 1.1}[acceleration]
    assert ratio > 5 * (torch.cdist(uniform, uniform) + 1e9 * torch.eye(len(at))).min()
    centre, corner = mask[20:28, 28:36].mean(), mask[:8, :8].mean()
    assert centre > 3 * corner > 0


def test_radial_spokes_pass_the_centre() -> None:
    mask = sampling_mask("radial", 64, 64, 8, 0.0)
    assert mask[32, 32] == 1 and mask[31:34, 31:34].mean() > 0.8
    v, u = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 32, indexing="ij")
    assert mask[(v**2 + u**2) > 33**2].sum() == 0


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
@pytest.mark.parametrize("lines", [True, False])
def test_mask_from_a_file(tmp_path: Path, suffix: str, lines: bool) -> None:
    mask = rand(9) > 0.5 if lines else rand(7, 9) > 0.5
    path = tmp_path / f"mask{suffix}"
    np.save(path, mask.numpy()) if suffix == ".npy" else torch.save(mask, path)
    assert torch.equal(MRI((2, 7, 9), kind="file", mask=str(path)).mask[0], mask.double().expand(7, 9))


# -- coils ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coils", [1, 4, 8])
def test_maps_have_unit_sum_of_squares(coils: int) -> None:
    for maps in (birdcage_maps(coils, 9, 12), smooth_maps(coils, 9, 12)):
        assert maps.shape == (coils, 9, 12)
        assert (maps.abs().square().sum(0) - 1).abs().max() < 1e-14


def test_birdcage_coils_are_turned_copies_and_decay_with_distance() -> None:
    maps = birdcage_maps(4, 10, 10)
    # The picture is u to the right and v down, so the next coil sits a quarter turn clockwise.
    assert (maps[1] - torch.rot90(maps[0], -1)).abs().max() < 1e-14
    assert maps[0, 5, 9].abs() > 2 * maps[0, 5, 0].abs()


def test_smooth_maps_are_smooth_and_seeded() -> None:
    maps = smooth_maps(6, 64, 64, seed=1)
    assert torch.equal(maps, smooth_maps(6, 64, 64, seed=1)) and not torch.equal(maps, smooth_maps(6, 64, 64, seed=2))
    spectrum = (
        torch.fft.fft2(maps * torch.hann_window(64, dtype=torch.float64)[:, None] * torch.hann_window(64, dtype=torch.float64)).abs() ** 2
    )
    low = torch.fft.fftfreq(64).abs() < 0.1
    assert spectrum[:, low][:, :, low].sum() > 0.999 * spectrum.sum()


def test_coil_maps_from_a_file(tmp_path: Path) -> None:
    maps = smooth_maps(3, 6, 5)
    np.save(tmp_path / "maps.npy", maps.numpy())
    op = MultiCoilMRI((2, 6, 5), coils="file", coil_maps=str(tmp_path / "maps.npy"), acceleration=2)
    assert torch.equal(torch.complex(op.maps[0], op.maps[1]), maps)
    assert all(law.passed for law in check(op))


# -- classical reconstructions --------------------------------------------------------------------------------------------


def disc_image(side: int = 32) -> Tensor:
    """A complex piecewise constant image (1, 2, side, side), float64."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    modulus = (0.4 * (u**2 + v**2 < 0.7) + 0.5 * (u**2 + v**2 < 0.2)).double()
    return torch.stack([0.6 * modulus, 0.8 * modulus])[None]


def test_sense_solves_its_normal_equations_and_beats_zero_filling() -> None:
    op = MultiCoilMRI((2, 32, 32), kind="equispaced", acceleration=2, coils="smooth", n_coils=8)
    x = disc_image()
    y = op.measure(x, 0.005)
    found = sense(op, y, 1e-3)
    assert (op.A_adjoint(op.A(found) - y) + 1e-3 * found).norm() < 1e-9 * op.A_adjoint(y).norm()
    assert (found - x).norm() < 0.5 * (zero_filled(op, y) - x).norm()


def test_total_variation_is_the_minimiser() -> None:
    op, x = MRI((2, 32, 32), acceleration=2.5), disc_image()
    y = op.measure(x, 0.02)

    def objective(t: Tensor) -> float:
        return float(0.5 * (op.A(t) - y).square().sum() + 0.02 * joint_variation(t).sum())

    found = total_variation(op, y, 0.02, 800)
    assert objective(found) < objective(total_variation(op, y, 0.02, 300)) + 1e-4
    for k in range(5):
        away = to_channels(torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(k), dtype=torch.complex128))
        assert objective(found + 1e-3 * away) > objective(found)
    assert (found - x).norm() < 0.7 * (zero_filled(op, y) - x).norm()


def test_total_variation_of_a_real_image_equals_deepinv() -> None:
    noisy = disc_image()[:, :1] + 0.1 * (rand(1, 1, 32, 32) - 0.5)
    x = torch.cat([noisy, torch.zeros_like(noisy)], 1)
    ours = total_variation(MRI((2, 32, 32), kind="full"), MRI((2, 32, 32), kind="full").A(x), 0.1, 500)
    theirs = deepinv.optim.TVPrior(n_it_max=1500, def_crit=1e-10).prox(noisy, gamma=0.1)
    assert ours[:, 1].abs().max() < 1e-12
    assert (ours[:, :1] - theirs).norm() < 1e-3 * theirs.norm()


def test_joint_variation_ignores_a_constant_phase() -> None:
    x = rand(2, 2, 6, 7) - 0.5
    turned = to_channels(to_complex(x) * complex(math.cos(1.1), math.sin(1.1)))
    assert (joint_variation(x) - joint_variation(turned)).abs().max() < 1e-12


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MRI((3, 8, 8)), "2 channels"),
        (lambda: MRI((1, 8, 8)), "2 channels"),
        (lambda: MRI((2, 8, 8), kind="spiral"), "equispaced, random"),
        (lambda: MRI((2, 8, 8), kind="file"), "go together"),
        (lambda: MRI((2, 8, 8), mask=torch.ones(8, 8)), "go together"),
        (lambda: MRI((2, 8, 8), kind="file", mask=torch.ones(8, 7)), r"\(8, 7\), k-space has \(8, 8\)"),
        (lambda: MRI((2, 8, 8), kind="file", mask=torch.ones(2, 8, 8)), "the same for both channels and every sample"),
        (lambda: MRI((2, 8, 8), kind="file", mask=torch.full((8, 8), float("nan"))), "real and finite"),
        (lambda: MRI((2, 8, 8), kind="file", mask="nowhere.npy"), "no mask file"),
        (lambda: MRI((2, 8, 8), kind="file", mask=torch.zeros(8, 8)), "no frequency"),
        (lambda: MRI((2, 8, 8), acceleration=0.5), "acceleration must be"),
        (lambda: MRI((2, 8, 8), acceleration=100), "leaves 0 lines"),
        (lambda: MRI((2, 8, 100), acceleration=8, centre_fraction=0.2), "takes 20"),
        (lambda: MRI((2, 8, 8), centre_fraction=1.0), "centre_fraction"),
        (lambda: MRI((2, 8, 8), kind="radial", acceleration=1.1), "corners"),
        (lambda: MultiCoilMRI((2, 8, 8), coils="loop"), "birdcage"),
        (lambda: MultiCoilMRI((2, 8, 8), n_coils=0), "n_coils"),
        (lambda: MultiCoilMRI((2, 8, 8), coils="file"), "go together"),
        (lambda: MultiCoilMRI((2, 8, 8), coils="file", coil_maps=torch.ones(4, 8, 8)), "must be complex"),
        (lambda: MultiCoilMRI((2, 8, 8), coils="file", coil_maps=smooth_maps(4, 8, 6)), r"\(4, 8, 6\); coil maps \(N, 8, 8\)"),
        (lambda: MultiCoilMRI((2, 8, 8), coils="file", coil_maps="nowhere.npy"), "no coil map file"),
        (lambda: MRI((2, 8, 8)).A(torch.ones(1, 8, 8, dtype=torch.complex64)), "operators.to_channels"),
        (lambda: MRI((2, 8, 8)).A_adjoint(torch.ones(1, 8, 8, dtype=torch.complex64)), "operators.to_channels"),
        (lambda: MRI((2, 8, 8)).A(torch.ones(1, 1, 8, 8)), "expects x of shape"),
        (lambda: to_channels(torch.ones(1, 8, 8)), "complex"),
        (lambda: to_complex(torch.ones(1, 3, 8, 8)), "real channels"),
        (lambda: sense(MRI((2, 8, 8)), torch.zeros(1, 2, 8, 8), 0.0), "weight"),
        (lambda: total_variation(MRI((2, 8, 8)), torch.zeros(1, 2, 8, 8), -1.0), "weight"),
    ],
)
def test_bad_input_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_channels_and_back() -> None:
    z = torch.complex(rand(3, 4, 5), rand(3, 4, 5))
    assert to_channels(z).shape == (3, 2, 4, 5) and torch.equal(to_complex(to_channels(z)), z)


def test_views_are_what_a_person_sees() -> None:
    op = MRI((2, 16, 16), kind="full")
    x = disc_image(16)
    modulus = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    assert (op.view(op.A(x)) - (2 * modulus - 1)).abs().max() < 1e-12
    k = op.log_kspace(op.A(x))
    assert k.shape == (1, 1, 16, 16) and k.argmax() == 8 * 16 + 8 and k.max() == 1 and k.min() >= -1
