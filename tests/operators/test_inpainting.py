"""Masks: what each kind hides, one mask per image, and refusals."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from operators import Inpainting, generator
from operators.pixels.masks import KINDS, SEEDED


def image(*shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=generator(3, "test"), dtype=torch.float64) - 1


def hidden(**options: object) -> Tensor:
    """Hidden pixels (H, W) of a 32 x 48 image."""
    return Inpainting((1, 32, 48), **options).mask[0] == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lines", "strokes"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_coverage_is_the_fraction_up_to_one_shape(kind: str, fraction: float) -> None:
    covered = float(hidden(kind=kind, fraction=fraction, thickness=2).double().mean())
    # The longest line covers 58 x 2 pixels and a bit, the longest segment 10 x 2 with its ends.
    excess = {"lines": 3 * 58, "strokes": 4 * 13}[kind] / (32 * 48)
    assert (covered == 0) if fraction == 0 else (fraction - 1 / (32 * 48) <= covered <= fraction + excess)


def test_lines_are_straight_and_as_thick_as_asked() -> None:
    """The smallest singular value of the centred coordinates of a stripe of width t is that of a uniform law, t / sqrt(12)."""
    for seed in range(5):
        for thickness in (3, 6):
            places = hidden(kind="lines", fraction=1e-3, thickness=thickness, seed=seed).nonzero().double()
            if len(places) < 12 * thickness:
                continue  # a corner was cut
            spread = torch.linalg.svdvals(places - places.mean(0))[1] / len(places) ** 0.5
            assert float(spread) == pytest.approx(thickness / 12**0.5, rel=0.2)


def test_strokes_are_connected_and_round() -> None:
    """One stroke alone: a connected set in which an opening by the smallest brush loses nothing but rounding."""
    from scipy import ndimage

    found = hidden(kind="strokes", fraction=0.02, thickness=6, seed=2).numpy()
    assert ndimage.label(found, np.ones((3, 3)))[1] == 1
    assert ndimage.binary_opening(found, np.ones((2, 2))).sum() > 0.9 * found.sum()


def test_text_is_legible_and_grows_with_its_size() -> None:
    small, large = (Inpainting((1, 96, 96), kind="text", text="HI", size=size, seed=1).mask[0] == 0 for size in (8, 24))
    assert all(0.05 < float(mask.double().mean()) < 0.4 for mask in (small, large))
    # Vertical stems of H and I: the longest vertical run is about the height of a capital, 0.7 of the size.
    runs = [max(len(run) for column in mask.T for run in "".join("01"[int(v)] for v in column).split("0")) for mask in (small, large)]
    assert 5 <= runs[0] <= 7
    assert 15 <= runs[1] <= 20
    assert not torch.equal(hidden(kind="text", text="a"), hidden(kind="text", text="b"))


def test_the_set_of_repaint() -> None:
    rows, cols = torch.arange(32)[:, None], torch.arange(48)
    assert torch.equal(hidden(kind="half"), (cols >= 24).expand(32, 48))
    assert torch.equal(hidden(kind="half", side="left"), (cols < 24).expand(32, 48))
    assert torch.equal(hidden(kind="half", side="top"), (rows < 16).expand(32, 48))
    assert torch.equal(hidden(kind="half", side="bottom"), (rows >= 16).expand(32, 48))
    assert torch.equal(~hidden(kind="expand"), (rows >= 12) & (rows < 20) & (cols >= 18) & (cols < 30))
    assert torch.equal(hidden(kind="alternate"), (rows % 2 == 1).expand(32, 48))
    assert torch.equal(~hidden(kind="super_resolve"), (rows % 2 == 0) & (cols % 2 == 0))
    assert Inpainting((3, 256, 256), kind="expand").measured == 3 * 64 * 64


@pytest.mark.parametrize("kind", SEEDED)
def test_seeded_kinds_follow_the_seed_and_no_global_generator(kind: str) -> None:
    state = torch.get_rng_state()
    first = hidden(kind=kind, seed=5)
    assert torch.equal(first, hidden(kind=kind, seed=5))
    assert not torch.equal(first, hidden(kind=kind, seed=6))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", SEEDED)
def test_a_mask_per_image_follows_its_id_alone(kind: str) -> None:
    op = Inpainting((3, 16, 20), kind=kind, per_image=True, seed=7)
    ids = ["a", "b", 3, "c"]
    together = op.for_ids(ids).mask
    assert together.shape == (4, 1, 16, 20)
    for row, name in enumerate(ids):
        assert torch.equal(op.for_ids([name]).mask[0], together[row])
    assert torch.equal(op.for_ids(ids[::-1]).mask, together.flip(0))
    assert len({tuple(mask.flatten().tolist()) for mask in together}) == 4
    assert not torch.equal(Inpainting((3, 16, 20), kind=kind, per_image=True, seed=8).for_ids(["a"]).mask[0], together[0])


def test_measuring_binds_and_a_batch_equals_single_images() -> None:
    op, x = Inpainting((3, 12, 12), kind="random", per_image=True), image(3, 3, 12, 12)
    ids = ["cat", "dog", "owl"]
    y = op.measure(x, 0.1, seed=4, ids=ids)
    for row, name in enumerate(ids):
        assert torch.equal(op.measure(x[row : row + 1], 0.1, seed=4, ids=[name])[0], y[row])
    bound = op.for_ids(ids)
    assert bound.ids == ("cat", "dog", "owl")
    assert torch.equal(bound.restrict(y), y)
    assert torch.equal(bound.measure(x, 0.1, seed=4), y)
    index = torch.tensor([2, 2, 0])
    chosen = bound.select(index)
    assert chosen.ids == ("owl", "owl", "cat")
    assert torch.equal(chosen.A(x[index]), bound.A(x)[index])
    gamma = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = x + (gamma / (1 + gamma))[:, None, None, None] * chosen.mask * (y[index] - x)
    assert (chosen.prox_l2(x, y[index], gamma) - expected).abs().max() < 1e-15
    # One image serves any number of samples.
    one = op.for_ids(["cat"])
    assert one.select(torch.tensor([0, 0])) is one
    assert torch.equal(one.A(x), x * bound.mask[:1])
    shared = Inpainting((3, 12, 12))
    assert shared.for_ids(ids) is shared


def test_binding_leaves_the_unbound_operator_and_copies_intact() -> None:
    op, x = Inpainting((1, 8, 8), kind="random", per_image=True), image(2, 1, 8, 8)
    bound = op.for_ids([0, 1])
    assert op.mask is None
    assert op.ids is None
    assert op.state_dict() == {}
    for same in (copy.deepcopy(bound), pickle.loads(pickle.dumps(bound)), pickle.loads(pickle.dumps(op)).for_ids([0, 1])):
        assert torch.equal(same.A(x), bound.A(x))
        assert same.ids == (0, 1)
    rebound = bound.for_ids([1, 0])
    assert torch.equal(rebound.mask, bound.mask.flip(0))


def test_a_folder_holds_a_mask_per_image(tmp_path: Path) -> None:
    masks = image(2, 6, 7) > 0
    np.save(tmp_path / "one.npy", masks[0].numpy())
    Image.fromarray((masks[1].numpy() * 255).astype(np.uint8)).save(tmp_path / "two.png")
    op = Inpainting((3, 6, 7), kind="file", mask=str(tmp_path), per_image=True)
    assert torch.equal(op.for_ids(["two", "one"]).mask[:, 0] == 1, masks.flip(0))
    with pytest.raises(ValueError, match=r"image 'three'.*three\.png nor three\.npy"):
        op.for_ids(["two", "three"])


def refuse(**options: object) -> object:
    return lambda: Inpainting((3, 8, 8), **options)  # type: ignore[arg-type]


REFUSALS = [
    (refuse(kind="stripes"), "'lines', 'strokes'.*'stripes'"),
    (refuse(kind="box", fraction=0.5), "fraction belongs to kind='random', 'lines' or 'strokes', got fraction=0.5 with kind='box'"),
    (refuse(kind="random", thickness=2), "thickness belongs to kind='lines' or 'strokes'.*thickness=2"),
    (refuse(kind="half", size=3), "size belongs to kind='box', 'text' or 'expand'"),
    (refuse(kind="box", text="a"), "text belongs to kind='text'"),
    (refuse(kind="expand", side="left"), "side belongs to kind='half'"),
    (refuse(kind="lines", margin=1), "margin belongs to kind='box', got margin=1"),
    (refuse(kind="box", mask=torch.ones(8, 8)), "mask belongs to kind='file', got mask=a tensor"),
    (refuse(kind="lines", fraction=1.0), r"\[0, 1\), got 1.0"),
    (refuse(kind="lines", thickness=0), "thickness.*0"),
    (refuse(kind="strokes", fraction=0.9, thickness=60), "hides every pixel"),
    (refuse(kind="text", text="  "), "no letters.*'  '"),
    (refuse(kind="text", size=(3, 4)), r"size=\(3, 4\)"),
    (refuse(kind="half", side="middle"), "'left', 'right', 'top' or 'bottom', got 'middle'"),
    (refuse(kind="expand", size=9), "9x9 exceeds.*8x8"),
    (refuse(kind="expand", size=0), "size=0"),
    (refuse(kind="file", mask=torch.ones(3, 8, 8)), r"\(3, 8, 8\), which could mean masks of channels.*pass one mask \(8, 8\)"),
    (refuse(kind="file", mask=torch.ones(2, 1, 8, 8)), r"\(2, 1, 8, 8\).*channels or of images"),
    (refuse(kind="file", mask=torch.ones(3, 8, 7)), r"size \(3, 8, 7\), the image has \(8, 8\)"),
    (refuse(kind="file", mask=torch.full((8, 8), torch.nan)), "finite.*64 bad"),
    (refuse(kind="file", mask=torch.ones(8, 8) + 0j), "must be real"),
    (refuse(kind="file", mask=torch.linspace(0, 1, 64).reshape(8, 8)), "63 values other than 0.*a mask holds one"),
    (refuse(kind="box", size=4.0), "size=4.0"),
    (refuse(kind="box", size=4, margin=1.5), "margin=1.5"),
    (refuse(kind="half", per_image=True), "'half' is the same for all"),
    (refuse(kind="box", size=20, per_image=True), "20x20.*does not fit.*; size may be at most 8x8"),
    (refuse(kind="file", mask="no/folder", per_image=True), "folder.*'no/folder'"),
    (refuse(kind="file", mask=torch.ones(8, 8), per_image=True), "folder.*a tensor"),
    (lambda: Inpainting((1, 8, 8), per_image=True).A(torch.zeros(1, 1, 8, 8)), r"own mask.*for_ids\(ids\)"),
    (lambda: Inpainting((1, 8, 8), per_image=True).measured, "for_ids"),
    (lambda: Inpainting((1, 8, 8), per_image=True).for_ids("abc").A(torch.zeros(2, 1, 8, 8)), "of 3 images, got a batch of 2"),
    (lambda: Inpainting((1, 24, 24), kind="strokes", per_image=True).for_ids("abc").measured, r"different numbers of pixels: \["),
]  # fmt: skip


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_the_value(act: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        act()  # type: ignore[operator]


def test_every_kind_is_documented() -> None:
    assert all(f'"{kind}"' in (Inpainting.__doc__ or "") for kind in KINDS)
