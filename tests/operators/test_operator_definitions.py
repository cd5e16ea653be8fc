"""Each operator against an independent definition of what it computes."""

from pathlib import Path

import deepinv.physics.functional as dF
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from operators import GaussianBlur, Identity, Inpainting, Matrix, Operator, SuperResolution, generator


def image(*shape: int) -> torch.Tensor:
    return 2 * torch.rand(shape, generator=generator(1, "test"), dtype=torch.float64) - 1


@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("reflect", "mirror")])
@pytest.mark.parametrize("std", [0.6, 1.7])
def test_blur_is_scipys(boundary: str, mode: str, std: float) -> None:
    x = image(2, 3, 17, 22)
    expected = gaussian_filter(x.numpy(), sigma=(0, 0, std, std), mode=mode, truncate=4)
    assert np.abs(GaussianBlur((3, 17, 22), std, boundary=boundary).A(x).numpy() - expected).max() < 1e-13


def test_default_blur_is_that_of_dps() -> None:
    """61 x 61 kernel: scipy's response to an impulse, applied after reflection padding of 30."""
    impulse = np.zeros((61, 61))
    impulse[30, 30] = 1
    kernel = torch.from_numpy(gaussian_filter(impulse, sigma=3))[None, None]
    x = image(1, 1, 64, 40)
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, [30] * 4, mode="reflect"), kernel)
    assert (GaussianBlur((1, 64, 40), boundary="reflect").A(x) - expected).abs().max() < 1e-13
    with_taps = GaussianBlur((1, 64, 40), std=3.0, taps=61, boundary="reflect")
    assert torch.equal(with_taps.A(x), GaussianBlur((1, 64, 40), boundary="reflect").A(x))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_matlabs_everywhere(factor: int) -> None:
    """deepinv's port of MATLAB's imresize mirrors the border as ours does, so the two agree on every pixel."""
    x = image(2, 3, 12 * factor, 7 * factor)
    expected = dF.imresize_matlab(x.clone(), scale=1 / factor, antialiasing=True, kernel="cubic", padding_type="reflect")
    assert (SuperResolution((3, 12 * factor, 7 * factor), factor).A(x) - expected).abs().max() < 1e-6


def test_bicubic_is_torchs_inside() -> None:
    """torch renormalises the cut kernel at the border instead of mirroring, so only pixels 2 from the border agree."""
    x = image(1, 3, 64, 48)
    expected = torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    gap = (SuperResolution((3, 64, 48)).A(x) - expected).abs()
    assert gap[..., 2:-2, 2:-2].max() < 1e-12
    assert gap.max() > 1e-3


def test_bicubic_keeps_constants_and_average_is_pooling() -> None:
    x = torch.full((1, 1, 20, 12), 0.3, dtype=torch.float64)
    assert (SuperResolution((1, 20, 12)).A(x) - 0.3).abs().max() < 1e-14
    x = image(2, 3, 12, 18)
    pooled = torch.nn.functional.avg_pool2d(x, 3)
    assert (SuperResolution((3, 12, 18), 3, "average").A(x) - pooled).abs().max() < 1e-14


@pytest.mark.parametrize("fraction", [0.0, 0.29, 0.7, 0.92])
def test_random_mask_removes_exactly_the_fraction(fraction: float) -> None:
    op = Inpainting((3, 10, 10), kind="random", fraction=fraction)
    assert int((op.mask == 0).sum()) == round(fraction * 100)
    assert op.mask.shape == (1, 10, 10)
    assert op.measured == 3 * (100 - round(fraction * 100))


def test_box_covers_every_allowed_place_and_no_other() -> None:
    places = set()
    for seed in range(400):
        hidden = (Inpainting((1, 8, 9), size=(3, 4), margin=2, seed=seed).mask[0] == 0).nonzero()
        assert len(hidden) == 12
        assert tuple((hidden.max(0).values - hidden.min(0).values).tolist()) == (2, 3)
        places.add(tuple(hidden.min(0).values.tolist()))
    assert places == {(r, c) for r in (2, 3) for c in (2, 3)}


def test_masks_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = Inpainting((3, 16, 16), kind="random", seed=5).mask
    state = torch.get_rng_state()
    assert torch.equal(first, Inpainting((1, 16, 16), kind="random", seed=5).mask)
    assert not torch.equal(first, Inpainting((3, 16, 16), kind="random", seed=6).mask)
    assert torch.equal(state, torch.get_rng_state())


def test_mask_files(tmp_path: Path) -> None:
    known = (image(6, 7) > 0).numpy()
    Image.fromarray((known * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", known)
    for name in ("mask.png", "mask.npy"):
        op = Inpainting((3, 6, 7), kind="file", mask=str(tmp_path / name))
        assert np.array_equal(op.mask[0].numpy() != 0, known)
    with pytest.raises(ValueError, match=r"\(6, 7\).*\(7, 6\)"):
        Inpainting((3, 7, 6), kind="file", mask=tmp_path / "mask.png")


def test_views() -> None:
    x = 3 * image(2, 3, 8, 8)
    box = Inpainting((3, 8, 8), size=4)
    seen = box.view(box.measure(x))
    assert torch.equal(seen[:, :, box.mask[0] == 0], torch.zeros(2, 3, 16, dtype=torch.float64))
    small = SuperResolution((3, 8, 8), 4)
    y = small.A(image(2, 3, 8, 8))
    assert small.view(y).shape == (2, 3, 8, 8)
    assert torch.equal(small.view(y)[..., ::4, ::4], y.clamp(-1, 1))
    assert Matrix(image(5, 12), (1, 3, 4)).view(image(2, 5)).shape == (2, 1, 3, 4)
    assert Identity((7,)).view(image(2, 7)).shape == (2, 1, 3, 3)


REFUSALS = [
    (lambda: Identity((3, 0, 4)), r"\(3, 0, 4\)"),
    (lambda: Identity(5), "such as .*got 5"),
    (lambda: GaussianBlur((8, 8)), r"3 entries.*\(8, 8\)"),
    (lambda: GaussianBlur((1, 8, 8), std=0.0), "std.*0.0"),
    (lambda: GaussianBlur((1, 8, 8), taps=4), "odd.*4"),
    (lambda: GaussianBlur((1, 8, 8), boundary="mirror"), "circular, reflect, zero, valid.*'mirror'"),
    (lambda: GaussianBlur((1, 32, 8), boundary="reflect"), "radius 12.*got 8"),
    (lambda: SuperResolution((1, 10, 8)), "factor 4.*10x8"),
    (lambda: SuperResolution((1, 8, 8), kind="nearest"), "average.*bicubic.*nearest"),
    (lambda: SuperResolution((1, 8, 8), factor=0), "factor.*0"),
    (lambda: Inpainting((1, 8, 8), kind="stripes"), "'box', 'random', .*or 'file', got 'stripes'"),
    (lambda: Inpainting((1, 8, 8), size=7, margin=1), "7x7 with margin 1.*8x8"),
    (lambda: Inpainting((1, 8, 8), size=0), "size=0"),
    (lambda: Inpainting((1, 8, 8), kind="random", fraction=1.0), r"\[0, 1\), got 1.0"),
    (lambda: Inpainting((1, 8, 8), kind="random", size=3), "kind='box', .*got size=3"),
    (lambda: Inpainting((1, 8, 8), kind="file"), "go together"),
    (lambda: Inpainting((1, 8, 8), kind="file", mask="/nowhere.png"), "/nowhere.png"),
    (lambda: Inpainting((1, 8, 8), kind="file", mask=torch.zeros(8, 8)), "hides every pixel"),
    (lambda: Inpainting((1, 8, 8), size=8), "hides every pixel"),
    (lambda: Matrix(torch.ones(3, 5), (1, 2, 3)), r"\(m, 6\).*\(3, 5\)"),
    (lambda: Matrix(torch.full((1, 2), torch.nan), (2,)), "finite.*2 bad"),
    (lambda: Matrix("/nowhere.npy", (2,)), "/nowhere.npy"),
    (lambda: Identity((1, 4, 4)).A(torch.zeros(1, 1, 4, 5)), r"\(B, 1, 4, 4\), got \(1, 1, 4, 5\)"),
    (lambda: Identity((1, 4, 4)).A(torch.zeros(1, 4, 4)), r"got \(1, 4, 4\)"),
    (lambda: Identity((1, 4, 4)).A(torch.zeros(1, 1, 4, 4).long()), "floating point, got torch.int64"),
    (lambda: SuperResolution((1, 8, 8)).A_adjoint(torch.zeros(1, 1, 8, 8)), r"y of shape \(B, 1, 2, 2\)"),
    (lambda: Identity((2,)).prox_l2(torch.zeros(1, 2), torch.zeros(1, 2), -1.0), "gamma.*-1.0"),
    (lambda: Identity((2,)).prox_l2(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(3)), "1 or 2 values"),
    (lambda: Identity((2,)).measure(torch.zeros(2, 2), ids=[1]), "2 samples, got 1"),
]


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_the_value(act: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        act()  # type: ignore[operator]


def test_abstract_parts_are_named() -> None:
    with pytest.raises(NotImplementedError, match="_forward"):
        Operator((2,)).A(torch.zeros(1, 2))
