"""The output folder: what is in it, and that a run goes on where it was killed."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from invsolve.cli.listing import gathered
from invsolve.config.load import load
from invsolve.resources import resource
from invsolve.runs import folder, local, task
from operators import Inpainting

PHOTO = resource("data", "priors", "photo", "unet")


@pytest.fixture
def sampled_ids(monkeypatch):
    """The ids handed to `sample`, call by call."""
    seen = []
    original = task.sample

    def sample(*args, ids, **options):
        seen.append(list(ids))
        return original(*args, ids=ids, **options)

    monkeypatch.setattr(task, "sample", sample)
    return seen


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(r["id"], r["sample"], r["metric"], float(r["value"])) for r in csv.DictReader(file)]


def test_folder_content(small, cli, work):
    outcome = cli("run", small, "trajectory=true")
    assert outcome.code == 0 and outcome.err == ""
    assert "runs/small/images/a/panel.png" in outcome.out and "PSNR" in outcome.out and "residual" in outcome.out
    folder = work / "runs/small"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    pictures = ["panel.png", "sample_0.png", "sample_1.png", "sample_2.png", "trajectory.gif"]
    wanted = [kind for i in "abcd" for kind in (f"arrays/{i}.npz", f"records/{i}.json", *(f"images/{i}/{name}" for name in pictures))]
    assert found == sorted([*wanted, "config.yaml", "manifest.json", "metrics.csv"])

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"] == list("abcd") and manifest["weights_sha256"] == "0" * 64 and manifest["seed"] == 0
    assert set(manifest["versions"]) >= {"invsolve", "torch", "deepinv", "diffusers", "python"}
    assert manifest["images"]["a"]["network_calls"]["forward"] == 8 and manifest["images"]["a"]["seconds"] > 0
    assert manifest["images"]["a"]["rows_per_pass"] == 3 * manifest["images"]["a"]["batch"]

    assert load(folder / "config.yaml").as_dict() == load(small, ["trajectory=true"]).as_dict() | {"out": "runs/small"}


def test_arrays_pictures_and_metrics_agree(small, cli, work):
    cli("run", small, "data.indices=1")
    with np.load(work / "runs/small/arrays/b.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    samples = arrays["samples"]
    assert samples.shape == (3, 3, 16, 16) and samples.dtype == np.float32
    np.testing.assert_allclose(arrays["mean"], samples.mean(0), atol=1e-6)
    np.testing.assert_allclose(arrays["std"], samples.std(0, ddof=1), atol=1e-6)
    for k in range(3):
        png = np.asarray(Image.open(work / f"runs/small/images/b/sample_{k}.png")).transpose(2, 0, 1)
        np.testing.assert_array_equal(png, np.rint((np.clip(samples[k], -1, 1).astype(np.float64) + 1) * 127.5))
    op = Inpainting((3, 16, 16), kind="box", size=6, margin=2)
    expected = op.measure(torch.from_numpy(arrays["x"])[None], 0.05, seed=0, ids=["b"])[0]
    np.testing.assert_array_equal(arrays["y"], expected.numpy())

    found = {row[1:3]: row[3] for row in rows(work / "runs/small")}
    assert set(found) == {(label, metric) for label in ("0", "1", "2", "mean") for metric in ("residual", "psnr", "ssim")}
    for label, image in (("1", samples[1]), ("mean", arrays["mean"])):
        error = np.clip(image, -1, 1).astype(np.float64) - arrays["x"]
        assert found[label, "psnr"] == pytest.approx(10 * np.log10(4 / np.mean(error**2)), abs=1e-3)
        misfit = np.linalg.norm((arrays["y"] - op.A(torch.from_numpy(image)[None])[0].numpy()).ravel())
        assert found[label, "residual"] == pytest.approx(misfit / (0.05 * np.sqrt(3 * (256 - 36))), rel=1e-4)


def test_results_do_not_depend_on_the_batch(small, cli, work):
    cli("run", small)
    cli("run", small, "out=runs/single", "batch=1", "data.indices=2")
    together, alone = (np.load(work / f"runs/{name}/arrays/c.npz")["samples"] for name in ("small", "single"))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_one_sample_has_a_std_of_zero(small, cli, work):
    assert cli("run", small, "samples=1", "data.indices=0").code == 0
    assert not np.load(work / "runs/small/arrays/a.npz")["std"].any()


def test_second_run_does_nothing_and_says_so(small, cli, work, sampled_ids):
    cli("run", small)
    before = {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")}
    outcome = cli("run", small)
    assert outcome.code == 0 and "4 of 4 images are finished in runs/small, not sampled again" in outcome.out
    assert "runs/small/images/a/panel.png" in outcome.out and "PSNR" in outcome.out
    assert sampled_ids == [list("abcd")]
    assert {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")} == before


@pytest.mark.parametrize("where", ["before the arrays", "while the arrays are written"])
def test_killed_run_goes_on(small, cli, work, sampled_ids, monkeypatch, where):
    write, done = np.savez_compressed, []

    def killed(path, **arrays):
        if len(done) == 2:
            if where == "while the arrays are written":
                path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        done.append(path)
        return write(path, **arrays)

    monkeypatch.setattr(folder.np, "savez_compressed", killed)
    outcome = cli("run", small, "batch=1")
    assert outcome.code == 130 and "interrupted" in outcome.err
    monkeypatch.setattr(folder.np, "savez_compressed", write)
    assert [path.stem for path in sorted((work / "runs/small/arrays").iterdir())] == ["a", "b"]
    sampled_ids.clear()

    outcome = cli("run", small, "batch=2")
    assert "2 of 4 images are finished" in outcome.out and sampled_ids == [["c", "d"]]
    assert json.loads((work / "runs/small/manifest.json").read_text())["finished"] == list("abcd")
    cli("run", small, "out=runs/whole")
    assert sorted(r[:3] for r in rows(work / "runs/small")) == sorted(r[:3] for r in rows(work / "runs/whole"))
    for name in "abcd":
        both = [np.load(work / f"runs/{run}/arrays/{name}.npz")["samples"] for run in ("small", "whole")]
        np.testing.assert_allclose(both[0], both[1], atol=1e-5)
    assert not list((work / "runs").rglob(".*"))


def test_half_finished_trajectory_goes_on_bit_for_bit(small, cli, work, prior):
    cli("run", small, "out=runs/whole", "data.indices=0")
    prior.calls.forward = 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(prior), "fail_at", 7)
        assert cli("run", small, "data.indices=0", "checkpoint_every=3").code == 130
    prior.calls.forward = 0
    assert cli("run", small, "data.indices=0", "checkpoint_every=3").code == 0
    assert prior.calls.forward == 8 - 6
    both = [np.load(work / f"runs/{name}/arrays/a.npz")["samples"] for name in ("small", "whole")]
    np.testing.assert_array_equal(*both)
    assert not list((work / "runs/small").rglob("*.pt"))


def test_another_configuration_is_refused_and_nothing_touched(small, cli, work):
    cli("run", small)
    before = {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")}
    outcome = cli("run", small, "sampler.zeta=0.7", "samples=2")
    assert outcome.code == 2
    assert "out = runs/small: holds a run with sampler.zeta = 0.3, and this one has 0.7; choose another folder with out=..." in outcome.err
    assert {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")} == before


def test_settings_that_change_no_result_go_on_in_the_same_folder(small, cli, sampled_ids):
    cli("run", small, "data.indices=0")
    assert cli("run", small, "data.indices=0", "batch=1", "progress=true").code == 0
    assert len(sampled_ids) == 1


def test_changed_input_or_weights_are_refused(small, cli, photos, prior):
    cli("run", small)
    Image.open(photos / "b.png").save(photos / "a.png")
    outcome = cli("run", small)
    assert outcome.code == 2 and "a.png has changed since a was sampled" in outcome.err
    cli("run", small, "out=runs/two", "data.indices=0,1")
    (photos.parent / "runs/two/arrays/b.npz").unlink()
    prior.weights_sha256 = "1" * 64
    outcome = cli("run", small, "out=runs/two", "data.indices=0,1")
    assert outcome.code == 2 and "other weights" in outcome.err


def test_the_result_is_a_run_again(small, cli, work):
    cli("run", small)
    outcome = cli("run", "runs/small/config.yaml")
    assert outcome.code == 0 and "4 of 4 images are finished" in outcome.out


def test_stored_measurement_without_truth(small, cli, work):
    cli("run", small, "data.indices=0")
    outcome = cli("run", small, "data.measurement=runs/small/arrays/a.npz", "out=runs/mine")
    assert outcome.code == 0 and "PSNR" not in outcome.out and "residual" in outcome.out
    stored = np.load(work / "runs/mine/arrays/a.npz")
    assert "x" not in stored and {row[2] for row in rows(work / "runs/mine")} == {"residual"}
    np.testing.assert_allclose(stored["samples"], np.load(work / "runs/small/arrays/a.npz")["samples"], atol=1e-6)
    assert (work / "runs/mine/images/a/panel.png").is_file()


def test_measurement_of_another_shape_and_batch_of_one(small, cli, work):
    changes = ["operator=super_resolution", "operator.factor=4"]
    cli("run", small, *changes, "data.indices=0", "out=runs/sr")
    np.save("y.npy", np.load(work / "runs/sr/arrays/a.npz")["y"][None])
    refused = cli("run", small, *changes, "data.measurement=y.npy", "out=runs/sr2")
    assert refused.code == 2 and "data.image_shape" in refused.err
    assert cli("run", small, *changes, "data.measurement=y.npy", "data.image_shape=[3,16,16]", "out=runs/sr2").code == 0


def test_images_of_several_sizes_in_one_run(small, cli, photos, sampled_ids):
    Image.open(photos / "b.png").resize((16, 24)).save(photos / "b.png")
    Image.open(photos / "a.png").resize((16, 16)).save(photos / "a.png")
    Image.open(photos / "c.png").resize((16, 16)).save(photos / "c.png")
    outcome = cli("run", small, "data.size=null", "data.indices=0-2")
    assert outcome.code == 1 and "failed: b: " in outcome.err and "prior any" in outcome.err and "(3, 24, 16)" in outcome.err
    assert sampled_ids == [["a", "c"]]
    alone = cli("run", small, "data.size=null", "data.indices=1", "out=runs/alone")
    assert alone.code == 2 and "(3, 24, 16)" in alone.err and len(sampled_ids) == 1


def test_poisson_noise_and_every_operator(small, cli, work):
    assert cli("run", small, "noise=poisson", "noise.gain=0.02", "data.indices=0", "out=runs/p").code == 0
    assert np.load(work / "runs/p/arrays/a.npz")["y"].min() >= 0
    np.save("A.npy", np.random.default_rng(0).normal(size=(40, 3 * 16 * 16)) / 28)
    for number, changes in enumerate(
        (["operator=matrix", "operator.A=A.npy"], ["operator=identity"], ["operator=gaussian_blur", "operator.std=1"])
    ):
        outcome = cli("run", small, *changes, "data.indices=0", "sampler.zeta=0.05", f"out=runs/{number}")
        assert outcome.code == 0, outcome
        assert (work / f"runs/{number}/images/a/panel.png").is_file()


def test_python_api_takes_a_ready_prior(small, prior):
    lines = []
    result = local.run(load(small, ["data.indices=0"]), prior=prior, say=lines.append)
    assert result.sampled == ["a"] and result.calls == {"forward": 8, "backward": 0, "encode": 0, "decode": 0}
    assert lines == ["inpainting, Gaussian noise, sigma 0.05 where images span [-1, 1] = 0.025 where they span [0, 1]"]
    assert local.run(load(small, ["data.indices=0"]), prior=prior, say=lines.append).skipped == ["a"] and len(lines) == 2


def test_list_show_and_version(small, cli, capsys):
    outcome = cli("list")
    assert outcome.code == 0
    for word in ("sampler:", "  dps ", "  inpainting ", "  poisson ", "  karras ", "  photo_inpaint ", "  measurement "):
        assert word in outcome.out
    assert cli("list", "samplers").out == cli("list", "sampler").out == cli("list", "sampler", "--all").out
    everything = cli("list", "--all").out
    assert set(cli("list", "sampler").out.splitlines()) <= set(everything.splitlines())
    assert len(everything) > len(outcome.out) or "_*" not in outcome.out
    outcome = cli("list", "smaplers")
    assert outcome.code == 2 and "did you mean sampler" in outcome.err
    shown = cli("show", small, "sampler=unconditional")
    assert shown.code == 0 and "kernel: ancestral" in shown.out and "zeta" not in shown.out and "samples: 3" in shown.out
    with pytest.raises(SystemExit) as stopped:
        cli("--version")
    assert stopped.value.code == 0 and "invsolve 0." in capsys.readouterr().out


def test_a_family_of_settings_is_one_line():
    words = ["box", "blur", "hdr", "phase", "random"]
    family = [(f"latent_daps_official_{word}", f"DAPS on codes as published for {word}.") for word in words]
    others = [("daps", "Annealing."), ("daps_official", "As published."), ("photo_sr4", ""), ("photo_hdr", "")]
    line = ("latent_daps_official_*", "DAPS on codes as published for ... (5 settings, named by `invsolve list --all`)")
    assert gathered([*others, *family]) == sorted([*others, line])
    assert gathered([*others, *family[1:]]) == sorted([*others, *family[1:]])


def test_a_mistake_of_ours_keeps_its_traceback_and_a_refusal_is_one_line(small, cli, prior):
    refused(cli("run", small, "sampler=daps", "sampler.inner=exact", "operator=hdr", "noise.sigma=0.05"), "sampler daps: inner='exact'")
    prior.denoise = lambda x, t: len(3)
    with pytest.raises(TypeError, match="has no len"):
        cli("run", small)


def test_the_command_starts_without_torch():
    code = "import sys, invsolve.cli\ntry: invsolve.cli.main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=resource())
    assert done.returncode == 0 and "examples:" in done.stdout, done.stderr


def test_module_is_the_command(small, work):
    done = subprocess.run(
        [sys.executable, "-m", "invsolve", "show", str(small), "samples=0"],
        capture_output=True, text=True, cwd=work, env={"PYTHONPATH": str(resource()), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr == "invsolve: error: samples = 0: must be at least 1\n"


@pytest.mark.skipif(not PHOTO.is_dir(), reason="the weights of the shipped prior are not there")
def test_presets_run_with_the_shipped_prior(work, cli):
    outcome = cli("run", "photo_inpaint", "data.indices=1", "schedule.steps=4", "samples=2", "device=cpu", "progress=false")
    assert outcome.code == 0, outcome
    assert len(json.loads((work / "runs/photo_inpaint/manifest.json").read_text())["weights_sha256"]) == 64
    assert "network calls" in outcome.out and "photo " in cli("list", "prior").out + " "
