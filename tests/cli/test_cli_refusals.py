"""Every mistake gives one line that names the value and what would be right, exit code 2, and leaves no folder behind."""

import numpy as np
import pytest
import torch
from refusals import refused

from invsolve.errors import ConfigError, Divergence

CASES = {
    "unknown key": (["sampler.zetta=1"], ["unknown key sampler.zetta", "did you mean sampler.zeta?", "dps takes: zeta, variant"]),
    "unknown top key": (["sample=1"], ["unknown key sample", "did you mean sample", "samples"]),
    "unknown section": (["smapler.zeta=1"], ["unknown key smapler.zeta", "sampler"]),
    "key too deep": (["sampler.zeta.x=1"], ["unknown key sampler.zeta.x"]),
    "empty key": (["sampler.=1"], ["unknown key sampler.;", "section.key"]),
    "wrong type": (["schedule.steps=many"], ["schedule.steps = 'many'", "a whole number"]),
    "broken integer": (["schedule.steps=10.5"], ["schedule.steps = 10.5", "a whole number"]),
    "wrong choice": (["sampler.variant=cubed"], ["sampler.variant = 'cubed'", "norm, squared, official"]),
    "missing key": (["operator=matrix"], ["operator.A is missing", "matrix needs it"]),
    "unknown name": (["sampler=dsp"], ["unknown sampler 'dsp'", "did you mean dps?", "pnp_ula", "unconditional"]),
    "unknown operator": (["operator.name=blurr"], ["unknown operator 'blurr'", "gaussian_blur"]),
    "no name": (["sampler="], ["sampler.name = ''", "dps"]),
    "multirun": (["-m"], ["-m", "no multirun"]),
    "removal": (["~sampler"], ["~sampler", "cannot be removed"]),
    "addition": (["+sampler.zeta=1"], ["cannot be added", "write sampler.zeta=1"]),
    "no equals sign": (["zeta"], ["'zeta' is not key=value", "seed=1"]),
    "broken value": (["operator.size=[1,2"], ["[1,2"]),
    "broken interpolation": (["sampler.zeta=${nose.sigma}"], ["nose"]),
    "injected": (["operator.image_shape=[3,8,8]"], ["operator.image_shape cannot be set", "comes from the data"]),
    "device twice": (["prior.device=cpu"], ["prior.device cannot be set", "device=..."]),
    "no samples": (["samples=0"], ["samples = 0", "at least 1"]),
    "negative memory": (["memory_gb=-1"], ["memory_gb = -1", "positive"]),
    "constructor refuses": (["sampler.zeta=-1"], ["sampler dps", "zeta=-1", ">= 0"]),
    "no such device": (["device=gpu0"], ["gpu0"]),
    "too many steps": (["schedule.steps=2000"], ["steps=2000", "1000"]),
    "size the prior cannot take": (["data.size=12"], ["prior any", "(3, 12, 12)", "data.size"]),
    "box too large": (["operator.size=30"], ["operator inpainting", "30x30", "16x16", "size may be at most 12x12"]),
    "no mask file": (["operator=inpainting", "operator.kind=file", "operator.mask=no.png"], ["no mask file at no.png"]),
    "missing folder": (["data.root=nowhere"], ["data.root = nowhere", "no such file or folder"]),
    "folder without images": (["data.root=empty"], ["data.root = empty", "no images", ".png"]),
    "broken image": (["data.root=broken.png"], ["broken.png", "cannot be read as an image"]),
    "index too large": (["data.indices=0-9"], ["data.indices = '0-9'", "there are 4, numbered 0 to 3"]),
    "index no number": (["data.indices=a"], ["data.indices = 'a'", "0-3"]),
    "crop too large": (["data.size=32"], ["data.size = 32", "32 x 32 crop", "a.png", "24 x 20"]),
    "origin without crop": (["data.fit=resize", "data.origin=[0,0]"], ["data.origin", "data.fit=crop"]),
    "missing measurement": (["data.measurement=no.npz"], ["data.measurement = no.npz", "no such file"]),
    "measurement has no size": (["data.measurement=y.npz", "data.size=16"], ["unknown key data.size", "measurement takes"]),
    "NaN in y": (["data.measurement=nan.npz"], ["nan.npz", "2 values of 768", "NaN"]),
    "wrong shape of y": (["data.measurement=small.npz", "data.image_shape=[3,16,16]"], ["(3, 8, 8)", "(3, 16, 16)"]),
    "shape of x unknown": (["data.measurement=flat.npz"], ["data.image_shape is needed", "(5,)"]),
    "no y in file": (["data.measurement=other.npz"], ["no array `y`", "z"]),
    "wrong kind of file": (["data.measurement=small.yaml"], [".npz, .npy, .pt"]),
    "sigma zero where it divides": (["noise.sigma=0", "sampler.variant=squared"], ["sigma = 0", "divides"]),
    "negative sigma": (["noise.sigma=-1"], ["noise gaussian", "sigma", "-1"]),
    "prior lacks what the sampler needs": (["sampler.variance=learned"], ["learned", "posterior"]),
    "out is a file": (["out=small.yaml"], ["out = small.yaml", "is a file"]),
    "out is no run": (["out=photos"], ["out = photos", "holds a.png", "no run"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refusal(case, small, cli, work):
    (work / "empty").mkdir()
    (work / "empty" / "readme.txt").write_text("")
    (work / "broken.png").write_bytes(b"not a png")
    y = np.zeros((3, 16, 16), np.float32)
    np.savez("y.npz", y=y)
    np.savez("small.npz", y=y[:, :8, :8])
    np.savez("flat.npz", y=np.zeros(5))
    np.savez("other.npz", z=y)
    y[0, 0, :2] = np.nan
    np.savez("nan.npz", y=y)
    overrides, fragments = CASES[case]
    refused(cli("run", small, *overrides), *fragments)
    assert not (work / "runs").exists() or not list((work / "runs").iterdir())


def test_mask_of_the_wrong_shape(small, cli):
    np.save("mask.npy", np.ones((8, 8)))
    refused(
        cli("run", small, "operator=inpainting", "operator.kind=file", "operator.mask=mask.npy"),
        "mask.npy has size (8, 8), the image has (16, 16)",
    )


def test_files(small, cli, work):
    refused(cli("run", "no.yaml"), "no such configuration file: no.yaml")
    refused(cli("run", "photo_inpant"), "unknown preset 'photo_inpant'", "did you mean photo_inpaint?", "photo_sr4")
    (work / "bad.yaml").write_text("a: [1\n")
    refused(cli("show", "bad.yaml"), "bad.yaml", "YAML")
    (work / "empty.yaml").write_text("")
    refused(cli("show", "empty.yaml"), "empty.yaml", "prior")
    (work / "part.yaml").write_text(small.read_text().replace("noise:", "# noise:"))
    refused(cli("show", "part.yaml"), "part.yaml has no section noise", "gaussian, poisson")
    (work / "list.yaml").write_text(small.read_text().replace("prior: any", "prior: [any]"))
    refused(cli("show", "list.yaml"), "prior = ['any']")


def test_unknown_prior_lists_what_there_is(photos, cli):
    refused(cli("run", "photo_inpaint", "prior=phto", "data.root=photos", "data.size=16", "operator.size=4"), "prior phto", "there are:")


def test_debug_shows_where(small, cli):
    with pytest.raises(ConfigError):
        cli("--debug", "run", small, "samples=0")
    with pytest.raises(ConfigError):
        cli("run", small, "samples=0", "--debug")


def test_corrected_configuration_may_use_the_folder_of_a_refused_one(small, cli, work):
    refused(cli("run", small, "noise.sigma=0", "sampler.variant=squared"), "sigma = 0")
    assert cli("run", small).code == 0


def test_divergence_of_one_image_leaves_the_others_and_gives_code_1(small, cli, work, monkeypatch):
    from invsolve.runs import task as run

    original = run.sample

    def sample(sampler, target, schedule, *, ids, **options):
        if "b" in ids:
            raise Divergence(f"diverged in a batch of {len(ids)} at step 3")
        return original(sampler, target, schedule, ids=ids, **options)

    monkeypatch.setattr(run, "sample", sample)
    outcome = cli("run", small)
    assert outcome.code == 1
    assert "failed: b: diverged in a batch of 1 at step 3" in outcome.err and "Traceback" not in outcome.err
    assert sorted(path.stem for path in (work / "runs/small/arrays").iterdir()) == ["a", "c", "d"]
    assert '"b": "diverged' in (work / "runs/small/manifest.json").read_text()
    monkeypatch.setattr(run, "sample", original)
    assert cli("run", small).code == 0
    assert '"b": "diverged' not in (work / "runs/small/manifest.json").read_text()


def test_real_divergence_and_nan_are_reported(small, cli, prior):
    outcome = cli("run", small, "sampler.zeta=1e30", "data.indices=0")
    assert outcome.code == 1 and "failed: a: " in outcome.err and "diverged" in outcome.err
    inner = prior.denoise
    prior.denoise = lambda x, t: inner(x, t) * torch.nan
    outcome = cli("run", small, "out=runs/nan", "data.indices=0")
    assert outcome.code == 1 and "failed: a: " in outcome.err


def test_runtime_failure_is_one_line_with_code_1(small, cli, prior):
    def broken(x, t):
        raise RuntimeError("out of memory\nhere")

    prior.denoise = broken
    outcome = cli("run", small)
    assert outcome.code == 1 and outcome.err.startswith("invsolve: error: RuntimeError: out of memory here")
