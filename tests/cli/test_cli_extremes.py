"""Settings far out of range, odd YAML, odd outputs: each is a refusal in one line (or a failed image), and never a traceback."""

import math
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from refusals import refused

from invsolve.config import names, trees
from invsolve.config.identity import show
from invsolve.config.load import load
from invsolve.config.names import resolve, table
from invsolve.config.schema import fields_of, takes_text
from invsolve.config.settings import shard_of
from invsolve.data.items import pick
from invsolve.engine.protocol import remedy_of
from invsolve.errors import ConfigError
from invsolve.priors.checkpoints import diffusers, foreign
from invsolve.schedules import DDPM, Cosine, Karras, Linear, moves
from operators.core.noise import GaussianNoise, PoissonNoise

QUICK = ["schedule.steps=2", "samples=1", "data.indices=0"]
EXTREMES = [
    "0", "-1", "1", "2", "true", "null", ".inf", "-.inf", ".nan", "1e-160", "1e300", "-1e300", "1e9", "99999999999999999999", "9" * 400,
    "9" * 5000, "1e400", "[]", "[1]", "[1,2]", "[0,0]", "[-1,.inf]", "{a: 1}", "²", "٣", "010", "''", "abc", "🐱", "caf\udce9", "a\nb",
    "${seed}", "${nope}", "${oc.env:NOPE_NOPE}", "${", "???", "[???]", "[" * 200, "!!python/object:os.system x", "*a", "&a [*a]",
    "0.5", "0.001", "../x", "x" * 300,
]  # fmt: skip


def attempts(count, seed):
    """``count`` settings drawn at random: a key of any section, of any component, with an extreme value."""
    rng = random.Random(seed)
    groups = ["operator", "noise", "schedule", "sampler", "data", ""]
    costly = {"custom", "measurement", "nonlinear_blur", "pnp_ula", "mri_data", "phantom", "glyphs", "crops"}
    # Loops of as many turns as they are told run for as long as that takes: no fault, and no test.
    loops = {"inner_steps", "leapfrogs", "ode_steps", "K", "rehearsals", "gamma", "cg", "travel", "pixel_steps", "latent_steps", "stages"}
    for _ in range(count):
        group = rng.choice(groups)
        if not group:
            key = rng.choice(["samples", "seed", "device", "out", "batch", "memory_gb", "checkpoint_every", "noise_device"])
            yield [f"{key}={rng.choice(EXTREMES)}"]
            continue
        name = rng.choice([name for name in table(group) if name not in costly])
        keys = [key for key in fields_of(resolve(group, name), skip=("image_shape",)) if key not in loops]
        chosen = rng.choice([*keys, "name"]) if keys else "name"
        yield [*([f"{group}={name}"] if chosen != "name" else []), f"{group}.{chosen}={rng.choice(EXTREMES)}"]


def problems(small, cli, tried):
    found = []
    for k, overrides in enumerate(tried):
        changed = {text.partition("=")[0] for text in overrides}
        others = [text for text in QUICK if text.partition("=")[0] not in changed]
        others = [text for text in others if not (text.startswith("schedule.") and "schedule=levels" in overrides)]
        for command in ("show", "run"):
            out = [] if "out" in changed else [f"out=o{k}"]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", RuntimeWarning)
                    outcome = cli(command, small, *others, *out, *overrides)
            except Exception as error:  # noqa: BLE001 what is looked for
                found.append((command, overrides, f"{type(error).__name__}: {error}"[:200]))
                continue
            lines = outcome.err.strip().splitlines()
            if outcome.code == 2 and (len(lines) != 1 or not lines[0].startswith("invsolve: error: ")):
                found.append((command, overrides, outcome.err[:300]))
            if "Traceback" in outcome.err or outcome.code not in (0, 1, 2) or (outcome.code == 1 and not lines):
                found.append((command, overrides, outcome.err[:300]))
    return found


def test_random_settings_give_no_traceback(small, cli):
    assert problems(small, cli, attempts(int(os.environ.get("INVSOLVE_FUZZ", "40")), seed=0)) == []


@pytest.mark.parametrize("group", ["prior", "operator", "noise", "schedule", "sampler", "data"])
@pytest.mark.parametrize("form", ["env", "key", "pick", "override", "whole"])
def test_a_name_is_looked_up_before_anything_is_chosen_by_it(group, form, small, monkeypatch):
    small.write_text(small.read_text().replace("schedule: {name: ddpm, steps: 8}\n", "") if group != "schedule" else small.read_text())
    names = {"prior": "photo", "operator": "hdr", "noise": "poisson", "schedule": "daps", "sampler": "daps", "data": "crops"}
    name, text = names[group], small.read_text().splitlines()
    monkeypatch.setenv("CHOSEN", name)
    extra = ["data.root=photos"] if group == "data" else []
    wanted = load(small, [f"{group}={name}", *extra]).as_dict()
    lines = [line for line in text if not line.startswith(f"{group}:")]
    values = ", root: photos" if group == "data" else ""
    given = {
        "env": f"{group}: {{name: '${{oc.env:CHOSEN}}'{values}}}",
        "key": f"{group}: {{name: '${{out}}'{values}}}\nout: {name}",
        "whole": f"{group}: '${{oc.decode:\"{{name: {name}{values}}}\"}}'",
    }
    small.write_text("\n".join([*lines, given.get(form, next((line for line in text if line.startswith(f"{group}:")), ""))]) + "\n")
    overrides = {"pick": [f"{group}=${{oc.env:CHOSEN}}", *extra], "override": [f"{group}.name=${{oc.env:CHOSEN}}", *extra]}.get(form, [])
    found = load(small, overrides).as_dict()
    assert {key: value for key, value in found.items() if key != "out"} == {key: value for key, value in wanted.items() if key != "out"}


def test_the_kind_of_an_operator_is_looked_up_before_advice_is_taken(small, tmp_path, monkeypatch):
    (tmp_path / "configs" / "sampler").mkdir(parents=True)
    file = "name: dps\nzeta: 0.1\nfamilies:\n  - {operators: [inpainting/random], zeta: 0.7}\n"
    (tmp_path / "configs" / "sampler" / "dps.yaml").write_text(file)
    monkeypatch.setattr(names, "resource", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setenv("KIND", "random")
    small.write_text(
        small.read_text().replace("{name: dps, zeta: 0.3}", "dps").replace("kind: box, size: 6, margin: 2", "kind: '${oc.env:KIND}'")
    )
    assert load(small).sections["sampler"].values["zeta"] == 0.7
    assert load(small, ["operator.kind=random", "operator=inpainting"]).sections["sampler"].values["zeta"] == 0.7


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=???", "seed"), ("noise.sigma=???", "noise.sigma"), ("sampler=???", "sampler.name"), ("operator.size=['???', 2]",
        "operator.size"),
        ("out=???", "out"), ("trainer.devices=???", "trainer.devices"), ("data.root=???", "data.root"), ("data.shard=???", "data.shard"),
    ],
)  # fmt: skip
def test_a_value_that_is_still_to_be_given_is_named(override, key, small, cli):
    refused(cli("show", small, override), f"{key} is missing")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"), ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("1_000", "1_000"), ("0x1f", "0x1f"), ("2024-01-01", "2024-01-01"),
        ("1e-3", 0.001), ("1e3", 1000.0), (".inf", math.inf), ("-.INF", -math.inf), ("true", True), ("~", None), ("-7", -7), ("🐱",
        "🐱"), ("=", "="),
    ],
)  # fmt: skip
def test_yaml_is_what_it_looks_like(text, value):
    found = trees.parse(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


BROKEN = {
    "twice": "seed: 1\nseed: 2", "tab": "\tseed: 1", "itself": "a: &a [*a]", "deep": "a: " + "[" * 3000,
    "object": "a: !!python/object:x.y z",
    "two documents": "a: 1\n---\nb: 2", "digits": "seed: " + "9" * 5000, "key": "? [1]\n: 2", "int": "a: !!int x",
    "binary": "a: !!binary aGk=",
    "bomb": "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 40)), "merge": "<<: 1",
    "circle": "out: ${device}\ndevice: ${out}", "empty": "", "list": "- 1",
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_odd_files_are_refused_in_one_line(case, work, cli):
    (work / "odd.yaml").write_text(BROKEN[case] + "\n")
    outcome = cli("show", "odd.yaml")
    refused(outcome)
    assert len(outcome.err) < 1000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(encoding, small, cli):
    small.write_bytes((small.read_text() + "out: é🐱\n").encode(encoding))
    assert load(small).settings.out == "é🐱"
    small.write_bytes("out: é\n".encode("latin-1"))
    refused(cli("show", small), "utf-8")


@pytest.mark.parametrize(
    "text", ["🐱.png", "𠮷野", "caf\udce9", "${x}", "\\${x", "a\\\\${b}", "010", "1e3", "yes", "\x85", "a: b", "null ", "???x"]
)
def test_any_text_is_shown_so_that_it_reads_back_the_same(text, small, work):
    (work / "again.yaml").write_bytes(trees.dump({"out": text}).encode("utf-8"))
    assert trees.look_up(trees.read(work / "again.yaml"), "out") == text
    if "${" not in text:
        (work / "again.yaml").write_bytes(show(load(small, [f"out={text}", f"data.root={text}"])).encode("utf-8"))
        again = load("again.yaml")
        assert again.settings.out == text and again.sections["data"].values["root"] == text


def test_a_run_in_folders_beyond_the_basic_plane(small, cli, photos):
    (photos / "a.png").rename(photos / "🐱.png")
    assert cli("run", small, "data.root=photos/🐱.png", "out=runs/𠮷野", *QUICK).code == 0
    assert cli("run", small, "data.root=photos/b.png", "out=runs/caf\udce9", *QUICK).code == 0


@pytest.mark.parametrize("text", ["²/3", "0/²", "٠/٣", "3/3", "-1/3", "1", "/", "0/" + "9" * 5000, " 0/3"])
def test_shards_are_ascii_digits(text):
    with pytest.raises(ConfigError, match=r"data\.shard = .*expected i/n"):
        shard_of(text)


@pytest.mark.parametrize("count", [None, 4])
@pytest.mark.parametrize("text", ["0-99999999999", "²", "٣", "9" * 5000, "0-" + "9" * 30, [10**12, 5]])
def test_indices_are_bounded_before_they_are_written_out(text, count):
    if count is None and isinstance(text, list):
        return
    with pytest.raises(ConfigError, match=r"data\.indices = "):
        pick(text, count)


@pytest.mark.parametrize(
    "schedule",
    [
        Karras(rho=0.001), Karras(rho=1e300), Karras(rho=math.inf), Karras(steps=10**9), Karras(sigma_max=math.inf),
        Karras(sigma_min=1e-320, rho=1e-2),
        Karras(steps=True), DDPM(train_steps=10**9), DDPM(steps=10**12), DDPM(beta_start=math.nan),
        DDPM(train_steps=0),
        Cosine(train_steps=10**9), Cosine(offset=math.inf), Cosine(train_steps=0), Linear(steps=10**9), Linear(start=1e-320),
        Linear(start=math.nan),
    ],
    ids=str,
)  # fmt: skip
def test_schedules_out_of_range_are_refused(schedule):
    with pytest.raises(ValueError):
        moves(schedule)


@pytest.mark.parametrize("value", [1e-160, 5e-324, 1e200, math.inf, math.nan, -1.0])
def test_noise_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="sigma must be"):
        GaussianNoise(value)
    with pytest.raises(ValueError, match="gain must be"):
        PoissonNoise(value)


def keys_file(folder, name, value):
    torch.save(value, folder / name)
    return folder / name


FAMILIES = {
    "guided-diffusion": {"time_embed.0.weight": 1, "input_blocks.0.0.weight": 2, "out.2.weight": 3},
    "score_sde": {"model": {"module.all_modules.0.weight": 1}, "ema": {}},
    "Stable Diffusion": {"state_dict": {"model.diffusion_model.input_blocks.0.weight": 1, "cond_stage_model.x": 2}},
    "unconditional latent diffusion": {
        "state_dict": {"model.diffusion_model.time_embed.0.weight": 1, "model.diffusion_model.input_blocks.0": 2}
    },
    "without its configuration": {"time_embedding.linear_1.weight": 1, "down_blocks.0.x": 2},
    "not known": {"layer.weight": 1},
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_files_are_told_by_their_names(family, older, tmp_path):
    torch.save(FAMILIES[family], tmp_path / "net.pt", _use_new_zipfile_serialization=not older)
    told = foreign.advice(tmp_path / "net.pt")
    assert family in told and "\n" not in told
    assert ("convert_original_stable_diffusion" in told) == (family == "Stable Diffusion")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_what_stands_in_the_place_of_weights_is_told(tmp_path):
    pointer, archive = tmp_path / "w.safetensors", tmp_path / "w.zip"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n")
    assert "git lfs pull" in foreign.advice(pointer)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("unet/config.json", "{}")
    assert "unpack it" in foreign.advice(archive)


def test_no_checkpoint_is_unpickled(work):
    for name in ("edm.pkl", "edm.pt", "edm.ckpt"):
        (work / name).write_bytes(pickle.dumps({"ema": Trap(), "k": "EDMPrecond"}))
        assert "EDM" in foreign.advice(work / name)
    torch.save({"state_dict": Trap()}, work / "net.zip")
    foreign.advice(work / "net.zip")
    for name in ("cut.pt", "empty.safetensors", "x.pkl", "y.zip"):
        (work / name).write_bytes(b"" if "empty" in name else b"\x80\x04")
        assert "\n" not in foreign.advice(work / name)
    assert not (work / "trapped").exists()


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        ({"predict_epsilon": False}, "sample"), ({"predict_epsilon": True}, "epsilon"), ({}, "epsilon"),
        ({"predict_epsilon": False, "prediction_type": "sample"}, "sample"), ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"predict_epsilon": False, "prediction_type": "epsilon"}, None), ({"predict_epsilon": True, "prediction_type": "sample"}, None),
        ({"predict_epsilon": True, "prediction_type": "v_prediction"}, None), ({"predict_epsilon": "no"}, None),
        *(({"num_train_timesteps": n}, None) for n in (1e9, 0, -5, 10.5, "many", None, True, math.inf)),
        ({"beta_end": 2}, None), ({"beta_start": "x"}, None), ({"trained_betas": [0.1, 2]}, None), ({"trained_betas": 3}, None),
        ({"beta_schedule": ["linear"]}, None),
    ],
)  # fmt: skip
def test_scheduler_files(keys, taken, tmp_path):
    import json

    (tmp_path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "linear"} | keys))
    if taken is not None:
        assert diffusers.read_scheduler(tmp_path)[1] == taken
    else:
        with pytest.raises(ValueError, match="scheduler_config.json"):
            diffusers.read_scheduler(tmp_path)


@pytest.mark.parametrize("name", sorted(table("sampler")))
def test_the_remedy_names_settings_that_the_sampler_has(name):
    kind = resolve("sampler", name)
    words = remedy_of(kind()).replace(",", " ").replace("=", " ").split()
    keys = set(fields_of(kind))
    assert ("zeta" in words) <= ("zeta" in keys)
    assert keys & set(words) or "steps" in words


@pytest.mark.parametrize("name", sorted(table("sampler")))
def test_counts_that_would_not_end_are_refused_by_every_sampler(name):
    kind = resolve("sampler", name)
    for key, field in fields_of(kind).items():
        if field.annotation in (int, int | None):
            with pytest.raises(ValueError, match=f"{key}=1000000000"):
                kind(**{key: 10**9})


@pytest.mark.parametrize("key", ["trainer.devices", "trainer.workers", "trainer.num_nodes"])
def test_a_million_processes_are_not_started(small, cli, key):
    refused(cli("eval", small, f"{key}=1e9"), f"{key} = 1e+09: must be at most")
    refused(cli("eval", small, f'{key}="99999999"'), f"{key} = ")


def test_names_that_are_too_long_for_a_file_are_names_that_are_not_there(small, cli):
    long = "x" * 5000
    refused(cli("show", long), "unknown preset")
    refused(cli("show", f"{long}.yaml"), "no such configuration file")
    refused(cli("show", small, f"sampler={long}"), "unknown sampler")
    refused(cli("score", long), "holds no config.yaml")


def spoken(work, command, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", command.replace("invsolve", f"{sys.executable} -m invsolve")], cwd=work, env=env, capture_output=True, text=True
    )


def test_output_never_ends_a_command(work):
    closed = spoken(work, "set -o pipefail; invsolve list sampler 2>err.txt | head -c 1; echo $?")
    assert closed.stdout.strip()[-1] == "0" and not (work / "err.txt").read_text()
    narrow = spoken(work, "invsolve show photo_inpaint data.root=é🐱.png", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0 and "\\U0001f431" in narrow.stdout and not narrow.stderr
    assert spoken(work, "invsolve list sampler >&-").returncode == 0
    assert spoken(work, "invsolve nonsense 2>&-").returncode == 2


def test_a_module_of_the_same_name_is_named(work):
    (work / "operators.py").write_text("open('ran', 'w')\n")
    (work / "s.py").write_text("import invsolve\n")
    done = subprocess.run([sys.executable, "s.py"], cwd=work, capture_output=True, text=True, env={**os.environ})
    assert done.returncode and str(work / "operators.py") in done.stderr.splitlines()[-1] and not (work / "ran").exists()


def test_text_keys_take_no_number_whose_spelling_is_lost(small, cli):
    assert takes_text(str | None)
    small.write_text(small.read_text() + "out: 1e3\n")
    refused(cli("show", small), "out = 1000.0", "text")


@pytest.mark.parametrize("text", ["${a}", r"\${a}", r"\\${a}", "x ${a} ${b.c}", r"\\\${a}", "plain", "$", "{}"])
def test_what_is_escaped_reads_the_same_and_looks_nothing_up(text):
    held = {"section": {"key": [text]}}
    assert trees.unescaped(trees.escaped(held)) == held
    assert trees.look_up(trees.escaped(held)) == held
    with trees.literally():
        assert trees.look_up(trees.escaped(held)) == held
