"""The training of the prior of photographs: pieces add up, what is held out is never drawn, what is exported loads."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve import Level, load_prior
from invsolve.resources import resource

sys.path.insert(0, str(resource("scripts")))

SETTINGS = {"channels": [8, 16], "batch": 2, "size": 16, "lr": 1e-3, "warmup": 3, "leaves": 0.2, "seed": 0}


@pytest.fixture(scope="module")
def pyramids(tmp_path_factory):
    """Nine photographs: each of one colour but for a little noise, so that a crop tells where it comes from."""
    import training_photographs as data

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for k in range(9):
        values = np.clip(rng.normal(10 + 28 * k, 2.0, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "LEAVES", 1)
        patch.setattr(data, "LEAF_SIDE", 32)
        yield data.Pyramids(folder, tmp_path_factory.mktemp("cache"), smallest=20)


def test_levels_of_the_pyramid(pyramids):
    of_one = [p for p in pyramids.pieces if p.name == "3.png"]
    assert [(p.height, p.width) for p in of_one] == [(40, 50), (34, 42), (28, 35), (24, 30), (20, 25)]
    full = np.asarray(Image.open(pyramids.paths[3]))
    assert np.array_equal(pyramids.crop(of_one[0], 5, 7, 16), full[5:21, 7:23])
    # Every level is the photograph: its mean is that of the whole, up to rounding and what a border weighs.
    assert all(abs(float(pyramids.crop(p, 0, 0, 20).mean()) - full.mean()) < 1 for p in of_one)
    assert [p.start for p in pyramids.pieces] == np.cumsum([0, *(p.height * p.width * 3 for p in pyramids.pieces[:-1])]).tolist()


def test_a_cache_is_used_again_and_made_anew_for_other_photographs(pyramids, tmp_path, monkeypatch):
    import training_photographs as data

    monkeypatch.setattr(data, "LEAVES", 0)
    folder = tmp_path / "images"
    folder.mkdir()
    for path in pyramids.paths:
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="0.png is 50x40; at least 96 pixels"):
        data.Pyramids(folder, tmp_path / "cache")
    first = data.Pyramids(folder, tmp_path / "cache", smallest=20)
    made = (tmp_path / "cache" / "pyramids.npy").stat().st_mtime_ns
    data.Pyramids(folder, tmp_path / "cache", smallest=20)
    assert (tmp_path / "cache" / "pyramids.npy").stat().st_mtime_ns == made
    Image.new("RGB", (120, 120), (9, 9, 9)).save(folder / "3.png")
    again = data.Pyramids(folder, tmp_path / "cache", smallest=20)
    assert (tmp_path / "cache" / "pyramids.npy").stat().st_mtime_ns != made and len(again.pieces) > len(first.pieces)


def test_what_is_held_out_is_never_drawn(pyramids):
    from training_photographs import Crops, held_out_crops

    assert pyramids.held_out == ["7.png"]
    crops = Crops(pyramids, batch=400, size=16, leaves=0.0)
    level = {p.name for levels in crops.photographs for p in levels}
    assert level == {f"{k}.png" for k in range(9)} - {"7.png"}
    rng = np.random.default_rng(1)
    means = np.array([crops._one(rng).mean() for _ in range(400)])
    nearest = np.abs(means[:, None] - (10 + 28 * np.arange(9))).argmin(1)
    assert set(nearest) == {0, 1, 2, 3, 4, 5, 6, 8}
    held = held_out_crops(pyramids, side=16, smaller=20)
    assert held.shape == (4, 3, 16, 16) and float(((held + 1) * 127.5 - (10 + 28 * 7)).mean().abs()) < 2


def test_batches_do_not_depend_on_the_number_of_workers(pyramids):
    from torch.utils.data import DataLoader
    from training_photographs import Batches, Crops

    crops = Crops(pyramids, 2, 16)
    drawn = []
    for workers, start in ((0, 0), (2, 0), (0, 2)):
        stream = iter(DataLoader(Batches(crops, 0, start), batch_size=None, num_workers=workers))
        drawn.append([next(stream) for _ in range(5 - start)])
    assert all(x.shape == (2, 3, 16, 16) and float(x.abs().max()) <= 1 for x in drawn[0])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0][2:], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])


def advance(run, pyramids, steps):
    from training_photographs import Batches, Crops

    crops = Crops(pyramids, run.settings["batch"], run.settings["size"], run.settings["leaves"])
    stream = iter(Batches(crops, run.settings["seed"], run.step))
    return [run.advance(next(stream)) for _ in range(steps)]


def test_pieces_add_up_to_one_run(pyramids, tmp_path):
    from train_photographs import Run

    whole = Run(SETTINGS, tmp_path / "whole")
    losses = advance(whole, pyramids, 5)
    first = Run(SETTINGS, tmp_path / "pieces")
    found = advance(first, pyramids, 2)
    first.save()
    second = Run(SETTINGS, tmp_path / "pieces")
    assert second.step == 2
    found += advance(second, pyramids, 3)
    assert found == losses and len(set(losses)) == 5
    for a, b in zip([dict(whole.weights), *whole.averages], [dict(second.weights), *second.averages], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_of_other_settings_is_refused(pyramids, tmp_path):
    from train_photographs import Run

    Run(SETTINGS, tmp_path).save()
    with pytest.raises(ValueError, match="trained with channels="):
        Run({**SETTINGS, "channels": [8, 24]}, tmp_path)


def test_the_averages_are_means_of_the_weights(pyramids, tmp_path):
    """Of a young run, whatever the decay: the share of a new step is 10 / (step + 10), so that the start is forgotten."""
    from train_photographs import Run

    run = Run(SETTINGS, tmp_path)
    name = "conv_in.weight"
    expected = run.weights[name].detach().clone()
    for step in range(1, 5):
        advance(run, pyramids, 1)
        expected += (run.weights[name].detach() - expected) * 10 / (step + 10)
    torch.testing.assert_close(run.averages[0][name], expected)
    assert not torch.equal(run.averages[0][name], run.weights[name])


def test_finishing_lets_the_rate_fall_to_zero_on_a_copy(pyramids, tmp_path):
    from train_photographs import Run

    start = Run(SETTINGS, tmp_path)
    advance(start, pyramids, 4)
    start.save()
    kept = (tmp_path / "last.pt").read_bytes()
    run = Run(SETTINGS, tmp_path, finish=10.0)
    rates = []
    for _ in range(4):
        advance(run, pyramids, 1)
        rates.append(run.optimiser.param_groups[0]["lr"])
        run.count(2.5)
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3]) and run.annealed
    run.save()
    assert (tmp_path / "last.pt").read_bytes() == kept
    assert Run(SETTINGS, tmp_path, finish=10.0).annealed and not Run(SETTINGS, tmp_path).annealed


def test_the_best_average_is_exported_as_a_prior_that_scores_the_same(pyramids, tmp_path):
    from train_photographs import SIGMAS, Run, export, scores
    from training_photographs import held_out_crops

    run, truth = Run(SETTINGS, tmp_path), held_out_crops(pyramids, side=16, smaller=20)
    with pytest.raises(FileNotFoundError, match="nothing was scored yet"):
        export(run, pyramids, tmp_path / "early")
    advance(run, pyramids, 3)
    run.score(truth)
    export(run, pyramids, tmp_path / "prior")
    prior = load_prior(tmp_path / "prior", device="cpu")
    assert (prior.channels, prior.multiple) == (3, 4)
    assert prior.denoise(torch.zeros(1, 3, 12, 16), Level(1.0, 0.5)).shape == (1, 3, 12, 16)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 1, "of a young run both averages are the same"
    best = lines[0]
    assert set(best["psnr"]) == set(SIGMAS) and run.best == pytest.approx(best["mean"], abs=1e-3)
    # Weights in half precision: relative 2^-11 each, of an error that the PSNR measures.
    assert scores(prior, truth) == pytest.approx(best["psnr"], abs=0.05)
    assert prior.card["training"]["held_out"] == ["7.png"] and "7.png" not in prior.card["training"]["photographs"]
    with pytest.raises(FileExistsError, match="left alone"):
        export(run, pyramids, tmp_path / "prior")


def test_two_runs_never_share_a_folder(tmp_path):
    from train_photographs import alone

    with alone(tmp_path), pytest.raises(BlockingIOError, match="by another process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
