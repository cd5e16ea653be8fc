"""The script that measures prompt tuning: nearest classes, shared references, and a study of a small pipeline to the end."""

import json
import sys

import pytest
import tiny_pipelines as tiny
import torch
from problems import tensor

from invsolve import load_prior
from invsolve.resources import resource
from invsolve.samplers import P2L

sys.path.insert(0, str(resource("scripts")))
recovery = pytest.importorskip("prompt_recovery", reason="the scripts are not part of an installed package")


def test_nearest_classes():
    table, null = tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, -1.0]]), tensor([0.5, 0.5])
    found = recovery.nearest(tensor([[0.2, 0.9], [2.0, 0.1], [0.6, 0.4]]), table, null)
    assert found["euclid"].tolist() == [0, 0, 0]
    assert found["cosine"].tolist() == [1, 0, 0]
    assert found["cosine_from_null"].tolist() == [1, 0, 0]


def test_settings_of_the_preset_and_of_the_command_line():
    common = {
        "K": 1,
        "within": "auto",
        "lr": 0.01,
        "lr_unit": "rms",
        "tuned": (2.0, float("inf")),
        "rehearsals": 1,
        "lam": None,
        "eta": 1.0,
    }
    assert recovery.preset("sr8", {}) == P2L(**common, zeta=4.0) and recovery.preset("box", {}) == P2L(**common, zeta=1.0)
    found = recovery.preset("box", {"K": "2", "tuned": "[0.5, .inf]", "zeta": "3"})
    assert (found.K, found.tuned, found.zeta) == (2, (0.5, float("inf")), 3.0)
    with pytest.raises(ValueError, match=r"unknown key sampler\.kay"):
        recovery.preset("box", {"kay": "2"})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    from diffusers import DDPMScheduler

    # Networks of random weights stay bounded where they predict the clean code.
    tiny.save_class_conditional(folder, DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type="sample"))
    prior = load_prior(folder, device="cpu")
    truth = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    operator = recovery.operator_of("sr8", (3, 16, 16), 8)
    return recovery.Study(prior, truth, torch.tensor([0, 2]), operator, sigma=0.05, steps=4, samples=2)


def test_a_study_runs_each_fixed_prompt_once_and_every_setting(study):
    rows, settings = [], [P2L(K=1, lr=0.1, zeta=0.1), P2L(K=2, lr=0.1, zeta=0.1)]
    for setting in (*settings, settings[0]):
        recovery.study_rows(study, [setting], "sr8", rows)
    assert [row["prompt"] for row in rows] == ["null", "true", "wrong", "tuned", "tuned"]
    null, true, wrong, one, two = rows
    assert len({null["psnr_mean"], true["psnr_mean"], wrong["psnr_mean"], one["psnr_mean"]}) == 4
    assert null["forward"] == 4 and (one["forward"], one["backward"]) == (8, 8) and two["forward"] == 12
    assert len(one["psnr"]) == 2 and len(one["nearest"]["euclid"]) == 4
    assert 0 < one["moved"] < two["moved"] and set(one["recovered"]) == {"euclid", "cosine", "cosine_from_null"}
    assert json.loads(json.dumps(rows)) == rows
    assert recovery.markdown(rows).count("\n") == 6


def test_a_prompt_that_starts_at_the_true_class_and_cannot_move_is_recovered(study):
    given = recovery.replace(study, prior=study.prior.conditioned(study.table()[study.labels]))
    row = recovery.tuned_row(given, P2L(K=1, lr=1e-6, zeta=0.1))
    assert row["recovered"] == {"euclid": 1.0, "cosine": 1.0, "cosine_from_null": 1.0}
    assert row["psnr"] == pytest.approx(study.run(P2L(K=0, zeta=0.1), study.labels)["psnr"], abs=1e-3)
    assert recovery.reference_labels(study, "wrong").tolist() == [1, 0]


def test_the_table_of_the_readme_needs_every_prompt(study):
    rows = []
    for task in recovery.TASKS:
        recovery.study_rows(study, [recovery.preset(task, {}), recovery.preset(task, {"K": "2"})], task, rows)
    lines = recovery.readme({"rows": rows}).splitlines()
    assert len(rows) == 10 and len(lines) == 4 and lines[2].split("|")[2:6] == [f" {row['psnr_mean']:.2f} " for row in rows[:4]]
    of_preset = [row for row in rows if row["sampler"] != repr(recovery.preset("box", {}))]
    with pytest.raises(recovery.Incomplete, match="box of 28 x 28 missing has not been run, as the preset has it, with the prompt: tuned"):
        recovery.readme({"rows": of_preset})
