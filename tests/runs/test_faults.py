"""What goes wrong with one image is said of it and costs no other; what is wrong with the configuration is refused."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import types

import numpy as np
import pytest
import torch
from analytic import arrays_of
from PIL import Image

from invsolve.cli.main import main
from invsolve.config.load import load
from invsolve.errors import ConfigError
from invsolve.resources import resource
from invsolve.runs import task
from invsolve.runs.folder import RunFolder
from invsolve.runs.lightning import evaluate
from invsolve.samplers import DPS

PHOTO = resource("data", "priors", "photo")


def quiet(config, prior):
    return evaluate(config, prior, say=lambda line: None)


def few(*more):
    return load("small.yaml", ["data.indices=0-4", *more])


def test_images_that_cannot_be_read_are_failures_of_their_ids(work, prior):
    """One without a header, one cut off in the middle, one too small for the crop, one transparent; the fifth is sampled."""
    (work / "photos/i00.png").write_bytes(b"no image")
    whole = (work / "photos/i01.png").read_bytes()
    (work / "photos/i01.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (8, 8)).save(work / "photos/i02.png")
    Image.new("RGBA", (16, 16)).save(work / "photos/i03.png")
    result = quiet(few(), prior)
    assert result.sampled == ["i04"] and list(result.failed) == ["i00", "i01", "i02", "i03"]
    for id, words in (("i00", "cannot be read as an image"), ("i01", "i01.png"), ("i02", "does not fit"), ("i03", "data.alpha")):
        assert words in result.failed[id]
    manifest = json.loads((work / "runs/small/manifest.json").read_text())
    assert manifest["failed"] == result.failed and manifest["finished"] == ["i04"]
    # Repaired, they are sampled, and nothing else is.
    (work / "photos/i01.png").write_bytes(whole)
    result = quiet(few(), prior)
    assert result.sampled == ["i01"] and result.skipped == ["i04"] and list(result.failed) == ["i00", "i02", "i03"]


def test_the_exit_code_says_so_and_names_the_ids(work, prior, monkeypatch, capsys):
    monkeypatch.setattr("invsolve.load_prior", lambda name, *, device="auto": prior, raising=False)
    (work / "photos/i01.png").write_bytes(b"no image")
    assert main(["eval", "small.yaml", "data.indices=0-2"]) == 1
    told = capsys.readouterr()
    assert "invsolve: failed: i01: photos/i01.png cannot be read" in told.err and "sampled 2" in told.out
    assert sorted(arrays_of(work / "runs/small")) == ["i00", "i02"]


def test_nan_in_a_stored_measurement_and_in_one_sample(work, prior, monkeypatch):
    (work / "y").mkdir()
    y = np.zeros((3, 16, 16), np.float32)
    for k in range(4):
        np.savez(work / f"y/m{k}.npz", y=np.where(np.arange(16) < (k == 2), np.nan, y), id=f"m{k}")
    (work / "y/m9.npz").write_bytes(b"no archive")
    original = task.sample

    def sample(*args, ids, **options):
        drawn = original(*args, ids=ids, **options)
        if "m1" in ids:
            drawn[ids.index("m1"), 1, 0, 3, 3] = torch.nan
        return drawn

    monkeypatch.setattr(task, "sample", sample)
    result = quiet(load("small.yaml", ["data.measurement=y"]), prior)
    assert result.sampled == ["m0", "m3"] and sorted(result.failed) == ["m1", "m2", "m9"]
    assert "48 values of 768 that are NaN" in result.failed["m2"] and "NaN or infinity in sample 1 of 2" in result.failed["m1"]
    assert "m9.npz cannot be read" in result.failed["m9"]


def test_a_diverging_sample_is_named_and_costs_its_image_alone(work, prior, monkeypatch):
    """An image is finished with all its samples or not at all: a mean of fewer would be no mean of `samples`."""
    quiet(few("out=runs/whole"), prior)
    step, whole = DPS.step, arrays_of(work / "runs/whole")

    def broken(self, target, state, move, noise):
        state = step(self, target, state, move, noise)
        for row, name in enumerate(noise.rows):
            if name in (("i01", 1), ("i03", 0), ("i03", 1)) and move.index == 2:
                state.x[row] = torch.nan
        return state

    with monkeypatch.context() as patched:
        patched.setattr(DPS, "step", broken)
        result = quiet(few(), prior)
    assert result.sampled == ["i00", "i02", "i04"] and list(result.failed) == ["i01", "i03"]
    assert "diverged at image 'i01', sample 1: step 3 of 5" in result.failed["i01"]
    assert "diverged at image 'i03', samples 0, 1: step 3 of 5" in result.failed["i03"]
    assert json.loads((work / "runs/small/manifest.json").read_text())["failed"] == result.failed
    assert arrays_of(work / "runs/small") == {id: whole[id] for id in ("i00", "i02", "i04")}
    assert quiet(few(), prior).sampled == ["i01", "i03"] and arrays_of(work / "runs/small") == whole


def test_a_full_disk_leaves_what_was_finished_and_names_the_rest(work, prior, forked):
    """On a file system of 160 KB, in a mount namespace of its own."""
    disk = work / "disk"
    disk.mkdir()
    told = work / "told.json"

    def filled():
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        result = quiet(load("small.yaml", ["out=disk/run"]), prior)
        shutil.copytree(disk / "run", work / "kept")
        told.write_text(json.dumps({"sampled": result.sampled, "failed": result.failed}))
        return 1 if result.failed else 0

    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        assert forked(filled).wait() == 1
        found = json.loads(told.read_text())
        ids = [f"i{k:02d}" for k in range(24)]
        assert 0 < len(found["sampled"]) < 24 and sorted([*found["sampled"], *found["failed"]]) == ids
        first = found["failed"][ids[len(found["sampled"])]]
        assert "could not be written: [Errno 28] No space left on device" in first
        assert found["failed"]["i23"].startswith(("not sampled: the disk is full", "could not be written"))
        kept = arrays_of(work / "kept")
        assert sorted(kept) == found["sampled"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    # With room again, the same command does the rest, and the whole is that of an undisturbed run.
    shutil.copytree(work / "kept", disk / "run")
    assert not quiet(load("small.yaml", ["out=disk/run"]), prior).failed
    quiet(load("small.yaml", ["out=runs/whole"]), prior)
    assert arrays_of(disk / "run") == arrays_of(work / "runs/whole")


def test_a_file_system_that_says_it_is_full(work, prior, monkeypatch):
    """As above where nothing can be mounted: the eighth array finds no room, with a part of it written."""
    written, ids, save = [], [f"i{k:02d}" for k in range(24)], np.savez_compressed

    def savez(path, **arrays):
        if len(written) == 7:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        save(path, **arrays)

    with monkeypatch.context() as full:
        full.setattr(np, "savez_compressed", savez)
        full.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
        result = quiet(load("small.yaml"), prior)
    assert result.sampled == ids[:7] and sorted(result.failed) == ids[7:]
    assert all(result.failed[id].startswith("could not be written: [Errno 28] No space left") for id in ids[7:9])
    assert all(result.failed[id] == "not sampled: the disk is full" for id in ids[9:])
    assert sorted(arrays_of(work / "runs/small")) == ids[:7] and not list((work / "runs").rglob(".*"))
    # What was sampled with a unit is sampled with it again, for a network rounds by what is sampled together.
    together, original = [], task.sample
    monkeypatch.setattr(task, "sample", lambda *args, ids, **more: together.append(ids) or original(*args, ids=ids, **more))
    assert quiet(load("small.yaml"), prior).sampled == ids[7:]
    assert together == [ids[first : first + 3] for first in range(6, 24, 3)]
    quiet(load("small.yaml", ["out=runs/whole"]), prior)
    assert arrays_of(work / "runs/small") == arrays_of(work / "runs/whole")


def test_two_writers_at_once(work, prior, forked):
    """Of the same evaluation: the result of one. Of another: refused, and the folder is all of one of them."""
    start = [forked(lambda: bool(quiet(load("small.yaml"), prior).failed)) for _ in range(2)]
    assert [child.wait() for child in start] == [0, 0]
    quiet(load("small.yaml", ["out=runs/alone"]), prior)
    assert arrays_of(work / "runs/small") == arrays_of(work / "runs/alone")
    assert (work / "runs/small/metrics.csv").read_bytes() == (work / "runs/alone/metrics.csv").read_bytes()

    def one(zeta):
        try:
            return bool(quiet(load("small.yaml", [f"sampler.zeta={zeta}", "out=runs/fight"]), prior).failed)
        except ConfigError as error:
            return 2 if "sampler.zeta" in str(error) else 3

    fighters = [forked(lambda zeta=zeta: one(zeta)) for zeta in (0.1, 0.2)]
    assert sorted(child.wait() for child in fighters) == [0, 2]
    zeta = load(work / "runs/fight/config.yaml").sections["sampler"].values["zeta"]
    quiet(load("small.yaml", [f"sampler.zeta={zeta}", "out=runs/peace"]), prior)
    assert arrays_of(work / "runs/fight") == arrays_of(work / "runs/peace")


def test_a_folder_of_another_run_is_refused_and_untouched(work, prior):
    quiet(few(), prior)
    before = {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")}
    with pytest.raises(ConfigError, match=r"holds a run with sampler.zeta = 0.3, and this one has 0.7; choose another folder"):
        quiet(few("sampler.zeta=0.7"), prior)
    assert {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")} == before
    record = work / "runs/small/records/i02.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"config": "another"}))
    with pytest.raises(ConfigError, match=r"i02.json is of another configuration"):
        quiet(few(), prior)


def test_refusals_leave_no_folder(work, prior):
    for changes, words in (
        (["trainer.devices=0"], "trainer: "),
        (["trainer.strategy=nonsense"], "trainer: "),
        (["trainer.logger=wandb"], "wandb"),
        (["trainer.device=2"], "unknown key trainer.device"),
        (["data.size=12", "trainer.logger=csv"], "prior any"),
        (["sampler=daps", "sampler.inner=exact", "operator=hdr", "trainer.logger=csv"], "sampler daps"),
        (["device=cpu", "trainer.accelerator=gpu"], "contradict"),
    ):
        if changes == ["trainer.logger=wandb"] and importlib.util.find_spec("wandb") is not None:
            continue  # nothing to refuse
        with pytest.raises(ConfigError, match=words):
            quiet(few(*changes), prior)
        assert not (work / "runs/small").exists()


@pytest.mark.parametrize("kind", ["damaged", "pickle"])
def test_weights_that_are_none_are_refused_in_a_line(work, capsys, kind):
    shutil.copytree(PHOTO, work / "mine")
    weights = next((work / "mine/unet").glob("*.safetensors"))
    if kind == "damaged":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        weights.unlink()
        torch.save({"state": torch.nn.Linear(2, 2)}, weights)
    assert main(["eval", "small.yaml", f"prior={work / 'mine'}", "data.indices=0"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("invsolve: error: prior ") and "safetensors" in err
    assert not (work / "runs/small").exists()


def test_records_make_the_tables_again(work, prior):
    """metrics.csv and manifest.json hold nothing that the records do not: deleted, or left behind by a kill, they come back.

    Half a record or half an array, which a machine that stopped may leave, is none.
    """
    quiet(few(), prior)
    folder = work / "runs/small"
    table, manifest = (folder / "metrics.csv").read_bytes(), json.loads((folder / "manifest.json").read_text())
    (folder / "metrics.csv").unlink()
    (folder / "records/i03.json").write_text('{"id": "i0')
    whole = (folder / "arrays/i01.npz").read_bytes()
    (folder / "arrays/i01.npz").write_bytes(whole[:-100])
    assert RunFolder(few()).finished([f"i{k:02d}" for k in range(5)]) == ["i00", "i02", "i04"]
    assert quiet(few(), prior).sampled == ["i01", "i03"] and (folder / "arrays/i01.npz").read_bytes() == whole
    assert (folder / "metrics.csv").read_bytes() == table
    assert json.loads((folder / "manifest.json").read_text())["finished"] == manifest["finished"]
