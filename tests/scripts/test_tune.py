"""The sweep script: its grid, its choice, what it trains on, the preset it writes, and one small sweep from end to end."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from invsolve.config.load import load
from invsolve.config.model import Component
from invsolve.data.items import EVALUATION_SEED
from invsolve.data.phantoms import phantom
from invsolve.errors import ConfigError
from invsolve.priors import GaussianPrior
from invsolve.resources import resource

sys.path.insert(0, str(resource("scripts")))
tune = pytest.importorskip("tune", reason="the scripts are not part of an installed package")

ROWS = [
    {"settings": {"a": "1"}, "psnr_sample": 25.0, "psnr_mean": 26.0, "residual": 0.3, "forward": 100.0, "seconds": 1.5},
    {"settings": {"a": "2"}, "psnr_sample": 24.0, "psnr_mean": 25.0, "residual": 1.0, "forward": 100.0, "seconds": 1.5},
    {"settings": {"a": "3"}, "psnr_sample": 23.0, "psnr_mean": 27.0, "residual": 1.4, "forward": 100.0, "seconds": 1.5},
    {"settings": {"a": "4"}, "failed": "Divergence: too large"},
]


def test_the_grid_is_every_combination():
    grid = tune.parse_grid(["sampler.zeta=1,2.5", "data.size=[8,16],32", "sampler.variant=norm"])
    assert grid == {"sampler.zeta": ["1", "2.5"], "data.size": ["[8,16]", "32"], "sampler.variant": ["norm"]}
    found = tune.combinations(grid)
    assert len(found) == 4 and found[0] == {"sampler.zeta": "1", "data.size": "[8,16]", "sampler.variant": "norm"}
    assert found[1] == {**found[0], "data.size": "32"} and len({json.dumps(c) for c in found}) == 4


@pytest.mark.parametrize("text", ["sampler.zeta", "=1,2", "sampler.zeta=", "sampler.zeta=1,,2", "sampler.zeta=1,1"])
def test_a_grid_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--grid"):
        tune.parse_grid([text])
    with pytest.raises(ConfigError, match="twice"):
        tune.parse_grid(["a=1", "a=2"])


def test_the_best_has_the_highest_psnr_within_the_residual():
    assert tune.best_of(ROWS, (0.5, 1.5), "sample")["settings"] == {"a": "2"}
    assert tune.best_of(ROWS, (0.5, 1.5), "mean")["settings"] == {"a": "3"}
    assert tune.best_of(ROWS, (0.0, 1.5), "sample")["settings"] == {"a": "1"}
    with pytest.raises(ConfigError, match=r"within 2 to 3 \(they are 0\.30 to 1\.40\)"):
        tune.best_of(ROWS, (2, 3), "sample")
    with pytest.raises(ConfigError, match="all failed"):
        tune.best_of(ROWS[3:], (0.5, 1.5), "sample")


def test_the_table_has_a_line_for_each_row():
    lines = tune.markdown(ROWS, ["a"]).splitlines()
    assert lines[0] == "| a | PSNR sample | PSNR mean | residual | network calls | s a sample |"
    assert lines[2] == "| 1 | 25.00 | 26.00 | 0.30 | 100 | 1.50 |" and lines[5] == "| 4 | Divergence: too large |"


def test_only_training_images_are_seen():
    data = load("photo_sr4").sections["data"]
    found = tune.training_images(data, 8, 32)
    assert found.shape == (8, 3, 32, 32) and found.min() >= -1 and found.max() <= 1
    assert len({image.numpy().tobytes() for image in found}) == 8
    assert not set(tune.VARIED) & {"astronaut", "chelsea", "coffee", "rocket"}
    assert tune.training_images(data, 1, None).shape == (1, 3, 64, 64)
    slices = tune.training_images(Component("data", "phantom", {"size": 32}), 2, None)
    assert slices.shape == (2, 2, 32, 32) and not torch.equal(slices[0], phantom(EVALUATION_SEED, 0, 32))
    with pytest.raises(ConfigError, match="there are training images"):
        tune.training_images(Component("data", "measurement", {"measurement": "y.npz"}), 2, 64)
    with pytest.raises(ConfigError, match="give --size"):
        tune.training_images(Component("data", "images", {"size": None}), 2, None)


@pytest.mark.parametrize(
    "overrides",
    [[], ["sampler.zeta=1"], ["sampler=mcg", "sampler.weight=0.5", "sampler.form=predictor_corrector", "schedule=karras"]],
)
def test_a_preset_reads_back_to_what_was_tuned(tmp_path, overrides):
    config = load("photo_inpaint", overrides)
    path = tmp_path / "deep" / "photo_inpaint_mcg.yaml"
    tune.write_preset(path, config, "Photographs with a hole.", "Found by a sweep:\nPSNR 25 dB.")
    again, text = load(path), path.read_text()
    assert again.sections == config.sections and again.settings.samples == config.settings.samples
    assert text.startswith("# Photographs with a hole.\n# Found by a sweep:\n# PSNR 25 dB.\nprior:    {name: photo}\n")
    assert "sigma: 0.05" not in text or "noise:    {name: gaussian, sigma: 0.05}" in text
    assert "clip" not in text and "eta:" not in text.replace("zeta:", ""), "defaults are not repeated"
    assert list(tmp_path.rglob("*.part.yaml")) == []


class Counting(GaussianPrior):
    def __init__(self, mean, cov):
        super().__init__(mean, cov)
        self.calls = SimpleNamespace(forward=0, backward=0)

    def denoise(self, x, t):
        self.calls.forward += 1
        return super().denoise(x, t)


def test_a_sweep_measures_and_continues(tmp_path, monkeypatch, capsys):
    preset, file, out = tmp_path / "small.yaml", tmp_path / "rows.json", tmp_path / "best.yaml"
    preset.write_text(
        "# Small.\nprior: {name: photo}\noperator: {name: inpainting, kind: random, fraction: 0.5}\nnoise: {name: gaussian, sigma: 0.1}\n"
        "schedule: {name: ddpm, steps: 20}\nsampler: {name: mcg, projection: soft}\ndata: {name: images, root: data/photos, size: 8}\n"
    )
    truth = 0.3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tune, "training_images", lambda data, count, size: truth[:count])
    built = []

    def build(self, **injected):
        if self.group != "prior":
            return original(self, **injected)
        built.append(self)
        return Counting(torch.zeros(3, 8, 8), 0.09 * torch.eye(192))

    original = Component.build
    monkeypatch.setattr(Component, "build", build)

    def run(*grid):
        monkeypatch.setattr(
            sys, "argv", ["tune.py", str(preset), "--images", "2", "--json", str(file), "--write", str(out), "--grid", *grid]
        )
        tune.main()
        return json.loads(file.read_text())["rows"], capsys.readouterr().out

    rows, said = run("sampler.projection=soft,none", "sampler.weight=0,1e9")
    assert len(rows) == 4 and len(built) == 1 and ["failed" in row for row in rows] == [False, True, False, True]
    soft, none = rows[0], rows[2]
    assert "diverged" in rows[1]["failed"]
    # Half of the pixels are known to 0.1 and the others to 0.3 on average, on the scale of [0, 1]: 2 sqrt(8) / 0.316 of PSNR.
    assert soft["psnr_sample"] > none["psnr_sample"] + 1.5 and soft["psnr_mean"] > soft["psnr_sample"]
    assert soft["forward"] == 20 and soft["backward"] == 0
    assert 0.5 < soft["residual"] < 1.5 < none["residual"]
    assert "best by PSNR of the sample, residual within 0.5 to 1.5: sampler.projection=soft sampler.weight=0" in said
    entry = yaml.safe_load(said[said.index("  - operators:") : said.index("wrote")])
    assert entry[0]["operators"] == ["inpainting/random"] and entry[0]["weight"] == 0.0 and entry[0]["projection"] == "soft"
    assert "training photographs (8 x 8)" in entry[0]["found"] and "residual" in entry[0]["found"]
    best = load(out)
    assert (
        best.sections["sampler"].values["weight"] == 0.0 and "among sampler.projection soft, none; sampler.weight 0, 1e9" in out.read_text()
    )
    rows, _ = run("sampler.projection=soft,none", "sampler.weight=0,0.5")
    assert len(rows) == 6 and rows[0] == soft, "what was measured is not measured again"
    monkeypatch.setattr(sys, "argv", ["tune.py", str(preset), "seed=3", "--images", "2", "--json", str(file), "--grid", "seed=1"])
    with pytest.raises(SystemExit):
        tune.main()
    assert "holds a sweep with another overrides" in capsys.readouterr().err
