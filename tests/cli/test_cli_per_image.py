"""A run in which every image has its own mask."""

import numpy as np
import pytest

from operators import Inpainting

RANDOM = ["operator.kind=random", "operator.size=null", "operator.margin=0", "operator.fraction=0.5", "operator.per_image=true"]


def stored(folder, id):
    with np.load(folder / f"arrays/{id}.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("x", "y", "samples")}


@pytest.fixture
def together(small, cli, work):
    outcome = cli("run", small, *RANDOM)
    assert outcome.code == 0, outcome.err
    return work / "runs/small"


def test_each_image_has_the_mask_of_its_id(together):
    op = Inpainting((3, 16, 16), kind="random", fraction=0.5, per_image=True)
    for id in "abcd":
        hidden = stored(together, id)["y"] == 0
        assert np.array_equal(hidden, np.broadcast_to(op.for_ids([id]).mask[0].numpy() == 0, (3, 16, 16)))
    assert len({(stored(together, id)["y"] == 0).tobytes() for id in "abcd"}) == 4


def test_neither_batch_nor_resumption_matters(small, cli, work, together, monkeypatch):
    cli("run", small, *RANDOM, "out=runs/single", "batch=1", "data.indices=2")
    from invsolve.runs import folder

    write, done = np.savez_compressed, []

    def killed(path, **arrays):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        return write(path, **arrays)

    monkeypatch.setattr(folder.np, "savez_compressed", killed)
    assert cli("run", small, *RANDOM, "out=runs/killed", "batch=3").code == 130
    monkeypatch.setattr(folder.np, "savez_compressed", write)
    assert cli("run", small, *RANDOM, "out=runs/killed", "batch=3").code == 0
    for other, ids in (("single", "c"), ("killed", "abcd")):
        for id in ids:
            ours, theirs = stored(together, id), stored(work / f"runs/{other}", id)
            np.testing.assert_array_equal(theirs["y"], ours["y"])
            np.testing.assert_allclose(theirs["samples"], ours["samples"], atol=1e-5)


def test_a_stored_measurement_meets_the_mask_of_its_id(small, cli, work, together):
    """The id of a stored measurement is its file's name; under another name the known pixels would not fit y."""
    y = stored(together, "b")["y"]
    np.savez(work / "b.npz", y=y)
    outcome = cli("run", small, *RANDOM, "data.measurement=b.npz", "out=runs/again")
    assert outcome.code == 0, outcome.err
    with np.load(work / "runs/again/arrays/b.npz") as arrays:
        np.testing.assert_array_equal(arrays["y"], y)
        np.testing.assert_allclose(arrays["samples"], stored(together, "b")["samples"], atol=1e-5)


def test_an_image_without_a_mask_fails_and_the_others_do_not(small, cli, work, prior):
    masks = work / "masks"
    masks.mkdir()
    for id in "abd":
        np.save(masks / f"{id}.npy", np.eye(16))
    chosen = ["operator.kind=file", "operator.size=null", "operator.margin=0", "operator.mask=masks", "operator.per_image=true"]
    outcome = cli("run", small, *chosen)
    assert outcome.code == 1
    assert "failed: c: " in outcome.err and "no mask for image 'c': there is neither c.png nor c.npy in masks" in outcome.err
    assert sorted(path.stem for path in (work / "runs/small/arrays").iterdir()) == ["a", "b", "d"]
    prior.calls.forward = 0
    outcome = cli("run", small, *chosen, "data.indices=2", "out=runs/alone")
    assert outcome.code == 2 and prior.calls.forward == 0 and not (work / "runs/alone").exists()
