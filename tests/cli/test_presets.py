"""Any sampler with any operator: what the samplers' files advise, and that every combination runs without a further setting."""

import itertools
import textwrap
from dataclasses import replace

import pytest
import torch

from invsolve import Posterior, sample
from invsolve.config.advice import advise
from invsolve.config.identity import show
from invsolve.config.load import _read, load
from invsolve.config.names import load_object, resolve, table
from invsolve.config.schema import fields_of
from invsolve.errors import ConfigError
from invsolve.likelihoods import LIKELIHOODS
from invsolve.resources import resource
from invsolve.samplers import DPS, MCG, PSLD
from invsolve.schedules import alpha_bars

PIXEL = ("daps", "dps", "mcg", "pnp_ula", "unconditional")
LATENT = sorted(set(table("sampler")) - set(PIXEL))
# The presets of the pixel priors; a preset of another prior belongs to the samplers for it.
PRESETS = [path.stem for path in sorted(resource("configs", "run").glob("*.yaml")) if _read(path)["prior"]["name"] in ("photo", "phantom")]
LATENT_PRESETS = [path.stem for path in sorted(resource("configs", "run").glob("*.yaml")) if _read(path)["prior"]["name"] == "glyphs"]
FILES = sorted(resource("configs", "sampler").glob("*.yaml"))

# What makes an operator small enough for images of 16 x 16 (phantoms: 32 x 32).
TINY = {
    "inpainting/box": ["operator.size=4", "operator.margin=2"],
    "structured_sensing": ["operator.measurements=200"],
    "compressed_sensing": ["operator.measurements=200"],
    "ptychography": ["operator.probe_size=8"],
    "blur": ["operator.taps=7"],
    "nonlinear_blur": ["operator.taps=7"],
    "compose": ["operator.parts=[{name: gaussian_blur, std: 1.0}, {name: inpainting, kind: random}]"],
    "stack": ["operator.parts=[{name: gaussian_blur, std: 1.0}, {name: inpainting, kind: random}]"],
}
# Two steps of everything; the warm start of a chain would diverge on two levels of its own schedule.
SHORT = {
    "daps": ["schedule.steps=2", "sampler.inner_steps=2", "sampler.leapfrogs=2"],
    "latent_daps": ["schedule.steps=2", "sampler.inner_steps=2", "sampler.leapfrogs=2"],
    "p2l": ["schedule.steps=2", "sampler.K=1"],
    "pnp_ula": ["schedule=karras", "schedule.steps=2", "schedule.sigma_max=1", "sampler.steps=2", "sampler.lipschitz=1"],
}
# Operators that are in no run preset of their own, each on one.
OTHERS = {
    "identity": "photo_sr4", "space_varying_blur": "photo_sr4", "kernel_downsampling": "photo_sr4", "compressed_sensing": "photo_sr4",
    "structured_phase_retrieval": "photo_sr4", "ptychography": "photo_sr4", "compose": "photo_sr4", "stack": "photo_sr4",
    "multicoil_mri": "mri_phantom",
}  # fmt: skip


@pytest.fixture(scope="module")
def priors():
    """The shipped priors, each loaded once."""
    return {}


def run(preset, overrides, priors):
    """One sample (1, 1, C, H, W) of the first image."""
    side = {"photo": ["data.size=16"], "phantom": ["data.size=32"], "glyphs": []}[load(preset).sections["prior"].name]
    overrides = [*overrides, *side, "device=cpu"]
    operator = load(preset, overrides).sections["operator"]
    tiny = TINY.get(f"{operator.name}/{operator.values.get('kind')}", TINY.get(operator.name, []))
    parts = load(preset, [*overrides, *tiny]).sections
    prior = priors.setdefault(parts["prior"].name, None) or parts["prior"].build(device="cpu")
    priors[parts["prior"].name] = prior
    x = torch.from_numpy(parts["data"].build().items()[0].load())[None]
    op, noise = parts["operator"].build(image_shape=tuple(x.shape[1:])).for_ids(["a"]), parts["noise"].build()
    y = op.measure(x, noise, seed=0, ids=["a"])
    likelihood = load_object(LIKELIHOODS[parts["noise"].name])(op, y, **noise.parameters)
    return sample(parts["sampler"].build(), Posterior(prior, likelihood), parts["schedule"].build(), n=1, ids=["a"], progress=False)


def few(sampler):
    return [f"sampler={sampler}", *SHORT.get(sampler, ["schedule.steps=2"])]


@pytest.mark.parametrize("sampler", PIXEL)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_with_every_sampler(preset, sampler, priors):
    assert torch.isfinite(run(preset, few(sampler), priors)).all()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", PIXEL)
@pytest.mark.parametrize("operator", OTHERS)
def test_every_other_operator_runs_with_every_sampler(operator, sampler, priors):
    assert torch.isfinite(run(OTHERS[operator], [f"operator={operator}", *TINY.get(operator, []), *few(sampler)], priors)).all()


@pytest.mark.parametrize("sampler", LATENT)
@pytest.mark.parametrize("preset", ["photo_sr4", "photo_jpeg"])
def test_a_sampler_for_other_problems_runs_or_says_what_it_needs(preset, sampler, priors):
    try:
        assert torch.isfinite(run(preset, few(sampler), priors)).all()
    except (TypeError, ValueError) as error:
        assert "prior" in str(error).lower() or "linear" in str(error).lower()


@pytest.mark.parametrize("sampler", [*LATENT, "latent_daps", "latent_dps", "pnp_ula"])
@pytest.mark.parametrize("preset", LATENT_PRESETS)
def test_every_latent_preset_runs_with_every_sampler_for_codes(preset, sampler, priors):
    assert torch.isfinite(run(preset, few(sampler), priors)).all()


def test_every_operator_is_in_a_preset_or_listed_here():
    presets = {load(name).sections["operator"].name for name in PRESETS}
    same = {"denoising": "identity"}
    files = {"matrix", "custom", "noncartesian_mri"}  # need a file of the user's, or an extra
    assert {same.get(name, name) for name in table("operator")} == presets | set(OTHERS) | files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_of_samplers_are_sound(path):
    file = _read(path)
    cls = resolve("sampler", file.get("name", path.stem))
    entries = [file, *file.get("families", [])]
    own = {"name", "schedule", "found", "families", "operators"}
    for entry in entries:
        values = {key: value for key, value in entry.items() if key not in own}
        assert set(values) <= set(fields_of(cls)), "values of the sampler"
        cls(**values)
    for entry in entries[1:]:
        assert set(entry) - {"operators"}, "an entry says something"
        for name in entry["operators"]:
            operator, _, kind = name.partition("/")
            fields = fields_of(resolve("operator", operator), skip=["image_shape"])
            assert not kind or "kind" in fields
    listed = list(itertools.chain.from_iterable(entry["operators"] for entry in entries[1:]))
    assert len(set(listed)) == len(listed), "no operator is listed twice"
    for entry in entries if path.stem in PIXEL else []:
        assert str(entry.get("found", "")).strip().endswith("."), f"{entry.get('operators', 'the file')}: how was it found?"


FILE = {
    "name": "dps", "zeta": 1.0, "variance": "upper", "found": "Guessed.", "schedule": "a",
    "families": [
        {"operators": ["inpainting", "blur"], "zeta": 2.0, "found": "Swept."},
        {"operators": ["inpainting/random"], "zeta": 3.0, "schedule": {"name": "b"}},
    ],
}  # fmt: skip


def test_the_narrowest_family_speaks_and_the_file_fills_in():
    box, random, other = (advise(FILE, "inpainting", kind, "f") for kind in ("box", "random", None))
    assert box == other and box.values == {"name": "dps", "zeta": 2.0, "variance": "upper"} and box.schedule == "a"
    assert random.values == {"name": "dps", "zeta": 3.0, "variance": "upper"} and random.schedule == {"name": "b"}
    assert random.found({"zeta": 3.0, "variance": "upper"}) == "Guessed." and random.found({"zeta": 1.0, "variance": "upper"}) == ""
    plain = advise(FILE, "identity", None, "f")
    assert plain.values == {"name": "dps", "zeta": 1.0, "variance": "upper"} and plain.found({"zeta": 1, "variance": "upper"}) == "Guessed."
    assert box.found({"zeta": 2.0, "variance": "learned"}) == "Swept.", "the entry says nothing of the variance"
    assert box.found({"zeta": 2.5, "variance": "upper"}) == "", "what was changed was not found so"
    with pytest.raises(ConfigError, match="f: families must be a list"):
        advise({"families": {"inpainting": {"zeta": 1.0}}}, "identity", None, "f")


def test_settings_follow_the_operator_and_yield_to_what_is_said(work):
    def zeta(*overrides):
        return load("photo_inpaint", overrides).sections["sampler"].values["zeta"]

    assert (zeta(), zeta("operator.kind=random"), zeta("operator=gaussian_blur")) == (2.5, 5.0, 7.5)
    assert zeta("operator=gaussian_blur", "sampler.zeta=1") == 1.0
    (work / "mine.yaml").write_text(show(load("photo_inpaint", ["sampler.zeta=3"])))
    assert load("mine.yaml", ["operator.kind=random"]).sections["sampler"].values["zeta"] == 3.0
    assert load("mine.yaml", ["operator.kind=random", "sampler=dps"]).sections["sampler"].values["zeta"] == 5.0


def test_the_schedule_follows_the_sampler_unless_it_is_named(work):
    def schedule(*overrides, name="photo_sr4"):
        part = load(name, overrides).sections["schedule"]
        return part.name, part.values["steps"]

    assert schedule() == ("ddpm", 100) and schedule("sampler=daps") == ("karras", 50)
    assert schedule("sampler=daps", "schedule.steps=20") == ("karras", 20)
    assert schedule("sampler=daps", "schedule=cosine") == ("cosine", 200)
    assert schedule(name="phase_retrieval") == ("ddpm", 200)
    assert schedule("sampler=daps_official") == ("karras", 200)
    (work / "mine.yaml").write_text(show(load("photo_sr4", ["schedule=linear"])))
    assert schedule("sampler=daps", name="mine.yaml") == ("linear", 50), "a schedule that a file names stays"


def test_the_configuration_tells_how_settings_were_found():
    def told(*overrides):
        text = show(load("photo_random", overrides))
        comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        assert all(len(line) <= 120 for line in comments) and textwrap.dedent(text) == text
        return " ".join(comments)

    assert "training photographs" in told() and "70 %" in told()
    assert told("sampler.zeta=1") == "" and told("sampler=unconditional") == ""
    assert load("photo_random").as_dict() == load("photo_random", ["sampler.zeta=5"]).as_dict()


PUBLISHED = {
    # sampler: {operator: settings}; all by 1000 steps but for tomography.
    "dps_official": {
        **dict.fromkeys(("super_resolution", "gaussian_blur", "blur", "nonlinear_blur"), {"zeta": 0.3}),
        **dict.fromkeys(("inpainting/random", "inpainting/box"), {"zeta": 0.5}),
        **dict.fromkeys(("phase_retrieval", "hdr"), {"zeta": 1.0}),
    },
    "mcg_official": {
        **dict.fromkeys(("inpainting/random", "inpainting/box"), {"weight": 1.0, "projection": "hard", "level": "t", "clip": True}),
        "tomography": {
            "weight": 0.2, "weighting": "fbp", "projection": "sirt", "level": "clean", "order": "at_once", "snr": 0.16,
            "form": "predictor_corrector",
        },
    },
    "psld_official": {
        **dict.fromkeys(("inpainting/random", "super_resolution", "gaussian_blur", "blur"), {"omega": 1.0, "gamma": 0.1}),
        "inpainting/box": {"omega": 0.1, "gamma": 0.01},
    },
    "psld_official_ldm": {
        **dict.fromkeys(("inpainting/random", "inpainting/box", "gaussian_blur", "blur"), {"omega": 0.1, "gamma": 0.1}),
        "super_resolution": {"omega": 0.9, "gamma": 0.1},
    },
}  # fmt: skip
SAME = {
    "dps_official": DPS(variant="official", norm="all"),
    "mcg_official": MCG(gradient="norm"),
    "psld_official": PSLD(gluing="official", fresh_noise=True, norm="all", eta=0.0),
    "psld_official_ldm": PSLD(gluing="official", fresh_noise=True, norm="all", eta=0.0),
}


@pytest.mark.parametrize(("sampler", "operator"), [(s, o) for s in PUBLISHED for o in PUBLISHED[s]])
def test_published_settings(sampler, operator):
    name, _, kind = operator.partition("/")
    config = load("photo_inpaint", [f"sampler={sampler}", f"operator={name}", *([f"operator.kind={kind}"] if kind else [])])
    assert config.sections["sampler"].build() == replace(SAME[sampler], **PUBLISHED[sampler][operator])
    levels = config.sections["schedule"].build().levels()
    if operator == "tomography":
        # Even in log(sigma), from 378 to 0.01 of images in [0, 1].
        grid = [756 * (0.02 / 756) ** (k / 1999) for k in range(2000)]
        assert [t.sigma for t in levels] == pytest.approx([*grid, 0.0], rel=2e-5)
    else:
        ends = {"psld_official": (0.00085, 0.012, 2), "psld_official_ldm": (0.0015, 0.0195, 2)}.get(sampler, (1e-4, 0.02, 1))
        bars = alpha_bars(*ends[:2], 1000, ends[2])
        assert [t.alpha**2 for t in levels] == pytest.approx([*reversed(bars), 1.0], rel=1e-12)
    told = " ".join(line[2:] for line in show(config).splitlines() if line.startswith("# "))
    assert "authors'" in told or "the code" in told
    strength = {"dps_official": "zeta", "mcg_official": "weight"}.get(sampler, "omega")
    changed = show(load("photo_inpaint", [f"sampler={sampler}", f"sampler.{strength}=7"]))
    assert "authors" not in changed and "the code" not in changed


@pytest.mark.parametrize(("sampler", "preset"), [
    ("dps_official", "photo_random"), ("dps_official", "photo_sr4"), ("mcg_official", "photo_inpaint"), ("mcg_official", "photo_ct"),
    ("psld_official", "glyph_random"), ("psld_official", "glyph_deblur"), ("psld_official_ldm", "glyph_sr4"),
])  # fmt: skip
def test_published_settings_run(sampler, preset, priors):
    # The shipped networks have no learned variance, and the levels of tomography need more than two steps.
    short = {"dps_official": ["sampler.variance=posterior"]}.get(sampler, [])
    steps = 20 if preset == "photo_ct" else 2
    assert torch.isfinite(run(preset, [f"sampler={sampler}", f"schedule.steps={steps}", *short], priors)).all()
