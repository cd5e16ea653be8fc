"""``invsolve calibrate``: what is printed, the exit code, the JSON file, defaults, and what is refused."""

import json

import pytest
from refusals import refused

from invsolve.cli.calibrate import _assembled, _operator
from invsolve.samplers import DAPS, DPS, PnPULA

SMALL = ("images=32", "draws=9", "progress=false")


def test_a_biased_sampler_fails_with_reasons_and_json(cli, work):
    arguments = ("calibrate", "sampler=dps", "problem=gaussian", "schedule.steps=30", *SMALL)
    ran = cli(*arguments, "json=found.json")
    assert ran.code == 1 and "NOT CALIBRATED:" in ran.out and "in what y measures" in ran.out
    assert "DPS(zeta=1.0" in ran.out and "exact draws" in ran.out and "OFF" in ran.out
    found = json.loads((work / "found.json").read_text())
    (problem,) = found["problems"]
    assert not found["passed"] and not problem["passed"] and problem["images"] == 32 and found["seed"] == 0
    assert {f["key"] for f in problem["findings"] if f["off"]} >= {"spread_measured", "ranks_the_likelihood"}
    # The same again, printed.
    assert json.loads(cli(*arguments, "json=-").out) == found


def test_a_file_of_json_is_replaced_only_when_that_is_said(cli, work):
    (work / "notes.json").write_text("mine")
    arguments = ("sampler=dps", "problem=gaussian", "schedule.steps=2", "json=notes.json", *SMALL)
    refused(cli("calibrate", *arguments), "notes.json: exists", "--overwrite")
    assert (work / "notes.json").read_text() == "mine"
    assert cli("calibrate", "--overwrite", *arguments).code == 1 and json.loads((work / "notes.json").read_text())["images"] == 32


def test_a_calibrated_sampler_passes_on_both_problems(cli):
    # With so many standard deviations allowed nothing is off; the table is the same.
    ran = cli("calibrate", "sampler=daps", "operator=inpainting", "schedule.steps=10", "schedule.sigma_max=5", "tolerance=2", *SMALL)
    assert ran.code == 0, ran.out
    assert ran.out.count("calibrated: nothing is off") == 2 and "a prior of two modes, images (1, 8, 8), Inpainting" in ran.out
    assert "error of the weights of modes" in ran.out


def test_settings_are_those_of_the_class_and_the_schedule_that_of_a_run():
    sections, _, given = _assembled(["sampler=dps", "operator=inpainting"])
    assert sections["sampler"].build() == DPS() and sections["schedule"].values["steps"] == 100 and given == {"operator"}
    # A value that equals the advice for photographs is kept when it is asked for.
    assert _assembled(["sampler=dps", "sampler.zeta=2.5", "operator=inpainting"])[0]["sampler"].build() == DPS(zeta=2.5)
    assert _assembled(["sampler=pnp_ula"])[0]["sampler"].build() == PnPULA()
    daps = _assembled(["sampler=daps"])[0]
    assert daps["sampler"].build() == DAPS() and daps["schedule"].name == "karras"
    # A name that is a file of settings asks for those.
    assert _assembled(["sampler=daps_official"])[0]["sampler"].build() != DAPS()
    assert _assembled(["sampler=dps"])[0]["noise"].build().std == 0.1


def test_the_shape_is_the_first_that_the_operator_takes_and_changes():
    shapes = ((1, 8, 8), (3, 8, 8), (2, 8, 8))
    for name, shape in (("inpainting", (1, 8, 8)), ("colourisation", (3, 8, 8)), ("mri", (2, 8, 8)), ("identity", (1, 8, 8))):
        component = _assembled(["sampler=dps", f"operator={name}"])[0]["operator"]
        assert _operator(component, shapes).image_shape == shape


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["operator=identity"], "sampler=NAME is needed"),
        (["sampler=dpz"], "did you mean dps"),
        (["sampler=dps", "operator.size=4"], "operator=NAME is needed"),
        (["sampler=dps", "noise.sigma=0"], "noise.sigma = 0"),
        (["sampler=dps", "noise=poisson"], "name one with operator=NAME"),
        (["sampler=dps", "images=3"], "images = 3"),
        (["sampler=dps", "problem=both_of_them"], "expected one of both, gaussian, mixture"),
        (["sampler=dps", "operator=inpainting", "operator.per_image=true", "operator.kind=box"], "differs from image to image"),
        (["sampler=p2l", "operator=identity", *SMALL], "takes none"),
        (["sampler=dps", "operator=blur"], "larger than the image"),
    ],
)
def test_refusals(cli, arguments, text):
    refused(cli("calibrate", *arguments), text)
