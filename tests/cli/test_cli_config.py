"""Merging, the schema, and the text of the resolved configuration."""

from dataclasses import dataclass
from typing import Literal

import pytest

from invsolve.cli.listing import listing
from invsolve.config import schema
from invsolve.config.identity import difference, identity, show
from invsolve.config.load import load
from invsolve.config.names import load_object, names, resolve, table
from invsolve.errors import ConfigError
from invsolve.likelihoods import LIKELIHOODS
from invsolve.resources import MEMORY_GB, resource
from invsolve.runs.folder import RunFolder


def values(config, group):
    return dict(config.sections[group].values)


def test_preset_is_completed_by_defaults():
    config = load("photo_inpaint")
    assert config.sections["sampler"].name == "dps"
    assert values(config, "sampler")["variant"] == "norm"
    assert config.settings.samples == 4 and config.settings.out == "runs/photo_inpaint"


@pytest.mark.parametrize("name", names("run"))
def test_every_preset_builds(name):
    config = load(name)
    for group in ("noise", "schedule", "sampler", "data"):
        config.sections[group].build()
    assert listing("run")[names("run").index(name)][1].endswith(".")
    shapes = {item.load().shape for item in config.sections["data"].build().items()}
    assert shapes == ({(2, 128, 128)} if name == "mri_phantom" else {(3, 64, 64)})
    config.sections["operator"].build(image_shape=shapes.pop())


def test_values_are_set_and_typed(work):
    config = load("photo_inpaint", ["sampler.zeta=1e-3", "schedule.steps=1e2", "samples=2", "operator.size=[4,6]", "out=2024"])
    assert values(config, "sampler")["zeta"] == 1e-3
    assert values(config, "schedule")["steps"] == 100 and isinstance(values(config, "schedule")["steps"], int)
    assert values(config, "operator")["size"] in ((4, 6), [4, 6])
    assert config.settings.out == "2024"


@pytest.mark.parametrize("order", [1, -1])
def test_a_component_is_picked_before_values_are_set(order):
    config = load("photo_inpaint", ["operator=super_resolution", "operator.factor=2"][::order])
    assert config.sections["operator"].name == "super_resolution"
    assert values(config, "operator")["factor"] == 2 and "size" not in values(config, "operator")


def test_section_may_be_a_bare_name_and_values_may_refer_to_each_other(small):
    text = small.read_text().replace("zeta: 0.3", "zeta: '${noise.sigma}'")
    small.write_text(text)
    config = load(small)
    assert config.sections["prior"].name == "any"
    assert values(config, "sampler")["zeta"] == 0.05


def test_component_file_supplies_defaults_and_may_name_a_class(small, tmp_path, monkeypatch):
    for group, name, text in (("operator", "half", "# Half.\nname: super_resolution\nfactor: 2\n"), ("schedule", "ddpm", "steps: 7\n")):
        (tmp_path / "configs" / group).mkdir(parents=True)
        (tmp_path / "configs" / group / f"{name}.yaml").write_text(text)
    monkeypatch.setattr("invsolve.config.names.resource", lambda *parts: tmp_path.joinpath(*parts))
    config = load(small, ["operator=half", "schedule=ddpm"])
    assert config.sections["operator"].name == "super_resolution" and values(config, "operator")["factor"] == 2
    assert values(config, "schedule")["steps"] == 7
    assert ("half", "Half.") in listing("operator")
    assert values(load(small), "schedule")["steps"] == 8


def test_shown_configuration_reads_back_to_the_same(work):
    config = load("photo_sr4", ["data.size=[32,64]", "seed=3", "data.indices=0-2"])
    (work / "again.yaml").write_text(show(config))
    assert load("again.yaml").as_dict() == config.as_dict()


def test_show_states_the_units_of_sigma():
    assert "sigma: 0.05  # [-1, 1] units; 0.025 in [0, 1]" in show(load("photo_sr4"))


def test_difference_ignores_what_does_not_change_results():
    plain = load("photo_sr4").as_dict()
    same = load("photo_sr4", ["device=cuda", "out=elsewhere", "progress=false", "batch=1"]).as_dict()
    assert difference(plain, same) is None
    other = load("photo_sr4", ["sampler.zeta=0.5", "seed=1"]).as_dict()
    assert difference(plain, other) == ("sampler.zeta", plain["sampler"]["zeta"], 0.5)


def test_the_memory_that_divides_the_rows_belongs_to_the_run_and_its_default_is_a_number():
    plain, null, other = (load("photo_sr4", [f"memory_gb={value}"] if value else []) for value in ("", "null", "3"))
    assert plain.settings.memory_gb == null.settings.memory_gb == MEMORY_GB and identity(plain) == identity(null) != identity(other)
    assert difference(plain.as_dict(), other.as_dict()) == ("memory_gb", MEMORY_GB, 3)


@pytest.mark.parametrize("group", ["operator", "noise", "schedule", "sampler", "data"])
def test_every_class_in_the_tables_has_a_readable_signature_and_help(group):
    assert all(text for _, text in listing(group))
    for name in table(group):
        fields = schema.fields_of(resolve(group, name))
        assert all(schema.describe(field.annotation) for field in fields.values())


def test_every_noise_has_a_likelihood_with_the_same_values():
    for name in names("noise"):
        accepted = schema.fields_of(load_object(LIKELIHOODS[name]))
        assert set(resolve("noise", name)().parameters) <= set(accepted)


@dataclass(frozen=True)
class Sample:
    count: int
    rate: float = 1.0
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    pair: tuple[int, int] | None = None
    many: tuple[float, ...] = ()
    label: str | None = None


FIELDS = schema.fields_of(Sample)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("count", 1000.0, 1000), ("rate", 2, 2.0), ("kind", "b", "b"), ("flag", True, True), ("pair", [1, 2], (1, 2)), ("pair", None, None),
        ("many", [1, 2.5], (1.0, 2.5)), ("label", 12, "12"), ("label", None, None), ("rate", float("inf"), float("inf")),
    ],
)  # fmt: skip
def test_values_that_fit(key, given, expected):
    found = schema.check("s", "x", {"count": 1, key: given}, FIELDS)[key]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("count", 10.5, "a whole number"), ("count", "many", "s.count = 'many'"), ("count", True, "a whole number"),
        ("count", None, "null"),
        ("rate", "fast", "a number"), ("rate", float("nan"), "a number"), ("kind", "c", "one of a, b"), ("flag", 1, "true or false"),
        ("pair", [1], "a list of 2"), ("pair", [1, "x"], "a list of 2"), ("many", 3.0, "a list (a number each)"), ("label", True, "text"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_named_with_what_would(key, given, words):
    with pytest.raises(ConfigError) as caught:
        schema.check("s", "x", {"count": 1, key: given}, FIELDS)
    assert words in str(caught.value) and f"s.{key}" in str(caught.value)


def test_missing_and_unknown_keys():
    with pytest.raises(ConfigError, match=r"s\.count is missing: x needs it \(a whole number\)"):
        schema.check("s", "x", {}, FIELDS)
    with pytest.raises(ConfigError, match=r"unknown key s\.cuont \(did you mean s\.count\?\); x takes: count, rate"):
        schema.check("s", "x", {"cuont": 1}, FIELDS)


def test_shipped_presets_are_where_an_installed_package_looks():
    assert resource("configs", "run", "demo.yaml").is_file()


def test_folder_of_a_config_file_names_the_run(small, work):
    (work / "mine").mkdir()
    (work / "mine" / "config.yaml").write_text(small.read_text())
    assert load("mine/config.yaml").settings.out == "runs/mine"
    assert RunFolder(load("mine/config.yaml")).path.name == "mine"
