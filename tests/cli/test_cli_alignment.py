"""A run of an operator with symmetries: what is aligned before it is compared, averaged and shown, and what is not."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.runs import task
from operators import FourierMagnitude

NOISE = 0.05


@pytest.fixture
def drawn(monkeypatch, photos):
    """`sample` replaced by the truth in one of its forms per draw and channel, plus a little noise; the draws by id."""
    kept = {}
    for k, name in enumerate("ab"):  # without any symmetry of their own
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(photos / f"{name}.png")

    def sample(sampler, target, schedule, *, n, ids, **options):
        x = torch.stack([torch.from_numpy(truths[id]) for id in ids])
        rng = torch.Generator().manual_seed(0)
        draws = x[:, None] + NOISE * torch.randn((1, n, *x.shape[1:]), generator=rng)
        draws[:, 0] = -draws[:, 0]
        draws[:, 1] = draws[:, 1].flip(-2, -1)
        draws[:, 2, 1] = -draws[:, 2, 1].flip(-2, -1)
        kept.update(zip(ids, draws, strict=True))
        return draws

    truths = {}
    measure = FourierMagnitude.measure

    def remember(self, x, noise, seed, ids):
        truths.update({id: one.numpy() for id, one in zip(ids, x, strict=True)})
        return measure(self, x, noise, seed, ids)

    monkeypatch.setattr(FourierMagnitude, "measure", remember)
    monkeypatch.setattr(task, "sample", sample)
    return kept


def _folder(small, cli, work, *more):
    assert cli("run", small, "operator=phase_retrieval", "out=runs/phase", "data.indices=[0,1]", *more).code == 0
    return work / "runs/phase"


def _psnr(image, truth):
    return 10 * np.log10(4 / np.mean((np.clip(image, -1, 1).astype(np.float64) - truth) ** 2))


def test_samples_are_aligned_to_the_truth_and_to_each_other(small, cli, work, drawn):
    folder = _folder(small, cli, work)
    with (folder / "metrics.csv").open(newline="") as file:
        found = {(r["id"], r["sample"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)}
    for id in "ab":
        arrays = dict(np.load(folder / f"arrays/{id}.npz"))
        x, raw = arrays["x"], arrays["samples"]
        np.testing.assert_array_equal(raw, drawn[id].numpy())
        right = np.stack([-raw[0], raw[1][:, ::-1, ::-1], raw[2]])
        right[2, 1] = -raw[2, 1, ::-1, ::-1]
        np.testing.assert_allclose(arrays["mean"], right.mean(0), atol=1e-6)
        np.testing.assert_allclose(arrays["std"], right.std(0, ddof=1), atol=1e-6)
        assert arrays["std"].mean() < 2 * NOISE < 0.5 * raw.std(0, ddof=1).mean()
        for label, image in (("0", right[0]), ("1", right[1]), ("2", right[2]), ("mean", right.mean(0))):
            assert found[id, label, "psnr"] == pytest.approx(_psnr(image, x), abs=1e-3)
            assert (id, label, "ssim") in found
        assert found[id, "mean", "psnr"] > found[id, "0", "psnr"] > 20
        # All forms explain y alike, and so does the mean only if it is one of aligned samples.
        assert found[id, "mean", "residual"] < found[id, "0", "residual"]
        shown = np.asarray(Image.open(folder / f"images/{id}/sample_0.png")).transpose(2, 0, 1) / 127.5 - 1
        assert np.abs(shown - np.clip(right[0], -1, 1)).max() < 1 / 127


def test_without_a_truth_the_first_sample_is_the_reference(small, cli, work, drawn):
    known = _folder(small, cli, work)
    folder = work / "runs/measured"
    np.savez(work / "a.npz", y=np.load(known / "arrays/a.npz")["y"])
    outcome = cli("run", small, "operator=phase_retrieval", "out=runs/measured", "data.measurement=a.npz", "data.image_shape=[3,16,16]")
    assert outcome.code == 0, outcome.err
    arrays = dict(np.load(folder / "arrays/a.npz"))
    np.testing.assert_allclose(arrays["mean"], -np.load(known / "arrays/a.npz")["mean"], atol=1e-6)
