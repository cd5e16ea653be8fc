"""From a preset or a YAML file and ``key=value`` arguments to a checked configuration.

A configuration has the sections prior, operator, noise, schedule, sampler and data (each a component chosen by ``name``
and its values) and the settings of `Settings`. The constructors are the schema (`invsolve.config.schema`); files are merged by
OmegaConf, so ``${noise.sigma}`` may be written wherever a value is repeated. What a run does not say of its sampler, and the
schedule where it names none, come from the sampler's file for the operator at hand (`invsolve.config.advice`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from invsolve.config import advice as presets
from invsolve.config import schema, trees
from invsolve.config.model import _SHARD, Component, Config, _plain
from invsolve.config.names import SECTIONS, component_file, names, resolve, unknown
from invsolve.config.overrides import around, looked_up, parse, value_of
from invsolve.config.settings import Settings, TrainerSettings, shard_of
from invsolve.errors import ConfigError, one_line
from invsolve.resources import resource
from operators.core.trust import code_is_refused, without_code

_S = TypeVar("_S")

# Arguments of the constructors that a configuration does not hold, because something else decides them.
_INJECTED = {
    "operator": {"image_shape": "it comes from the data (data.size, or data.image_shape for a stored measurement)"},
    "prior": {"device": "write device=... for the whole run", "name": "write prior=NAME"},
}


def load(name: str | Path, overrides: Sequence[str] = (), trust: bool = True) -> Config:
    """The configuration of a preset (a name in configs/run) or of a YAML file, changed by ``key=value`` overrides.

    ``sampler=daps`` picks another component (the keys of the previous one are dropped), ``sampler.zeta=0.5`` sets a value.
    Components are picked before values are set, whatever the order; ``data.measurement=FILE`` alone picks the stored
    measurement in place of the images. Where neither the file nor an override names a schedule, it is the sampler's. Without
    ``trust`` no file of a custom operator is imported, and of a config.yaml, as runs write it, no ${...} is looked up. Raises
    ConfigError.
    """
    if not trust:
        stored = Path(name).name == "config.yaml"
        with without_code(), trees.literally() if stored else nullcontext():
            return load(name, overrides)
    path = _find(str(name))
    tree = trees.unescaped(_read(path)) if code_is_refused() and path.name == "config.yaml" else _read(path)
    measured = any(text.startswith("data.measurement=") for text in overrides)
    picked = any(text.startswith(("data=", "data.name=")) for text in overrides)
    if measured and not picked and not (isinstance(tree.get("data"), dict) and "measurement" in tree["data"]):
        tree["data"] = "measurement"
    mine = [text for text in overrides if text.startswith("trainer.")]
    overrides = [text for text in overrides if text not in mine]
    trainer = _trainer(tree, mine, overrides)
    tree.pop("trainer", None)
    sections, settings = assemble(tree, overrides, SECTIONS, Settings, str(path))
    shard_of(sections["data"].values["shard"])
    stem = path.parent.name if path.stem == "config" else path.stem
    if settings.out is None:
        settings = dataclasses.replace(settings, out=f"runs/{stem}")
    return Config(stem, sections, settings, trainer)


def _trainer(tree: Mapping[str, Any], mine: Sequence[str], others: Sequence[str]) -> TrainerSettings:
    """The section trainer, changed by the overrides that begin with ``trainer.``."""
    values = {} if tree.get("trainer") is None else tree["trainer"]
    if not isinstance(values, dict):
        raise ConfigError(f"trainer = {values!r}: expected keys, such as devices")
    fields = schema.fields_of(TrainerSettings)
    whole = {**around(tree, others), "trainer": dict(values)}
    for text in mine:
        _, key, value = value_of(text, ("trainer",), lambda _: fields)
        whole["trainer"][str(key)] = value
    return TrainerSettings(**schema.check("trainer", "trainer", looked_up(whole, "trainer"), fields))


def assemble(
    tree: Mapping[str, Any], overrides: Sequence[str], groups: Sequence[str], settings: type[_S], source: str, owner: str = "a run"
) -> tuple[dict[str, Component], _S]:
    """The checked sections ``groups`` of ``tree`` and its other keys as a ``settings`` object, both changed by overrides.

    ``source`` is what a message calls the place that ``tree`` came from, ``owner`` what takes the settings. Raises ConfigError.
    """
    picks, values = parse(overrides, groups)
    tree = {**tree, **picks}
    tree.update(_names(tree, values, groups, source))
    advice = _advice(tree, values, source) if "sampler" in groups else presets.Advice()
    if "schedule" in groups and tree.get("schedule") is None:
        tree["schedule"] = dict(advice.schedule) if isinstance(advice.schedule, Mapping) else advice.schedule
    for group in groups:
        tree[group] = _section(group, tree.get(group), source, advice.values if group == "sampler" else None)
    fields = schema.fields_of(settings)
    merged = _merge(tree, values, groups, fields)
    sections = {group: _component(group, merged.pop(group)) for group in groups}
    if "sampler" in groups:
        sampler = sections["sampler"]
        advised = {key: value for key, value in advice.values.items() if key != "name"}
        sections["sampler"] = dataclasses.replace(sampler, advised=advised, found=advice.found(_plain(sampler.values)))
    for key in merged:
        if key not in fields:
            known = [*groups, *fields]
            raise ConfigError(f"unknown key {key}{schema.suggestion(str(key), known)}; there are: {', '.join(known)}")
    return sections, settings(**schema.check("", owner, merged, fields))


def _find(name: str) -> Path:
    """The file of a preset, or the path as given where it ends in .yaml or .yml."""
    if Path(name).suffix in (".yaml", ".yml"):
        if not os.path.isfile(name):
            raise ConfigError(f"no such configuration file: {name}")
        return Path(name)
    preset = resource("configs", "run", f"{name}.yaml")
    if "/" in name or not os.path.isfile(preset):
        raise unknown("preset", name, names("run"))
    return preset


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = trees.read(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not a YAML file that can be read: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no keys; the sections are: {', '.join(SECTIONS)}")
    return tree


def _section(group: str, given: Any, source: str, below: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A section on top of ``below``, by default what stands in ``configs/<group>/<name>.yaml`` where that exists."""
    values = _named(group, given, source)
    name = values.pop("name")
    return {"name": name} | dict(_file(group, name)[0] if below is None else below) | values


def _names(tree: Mapping[str, Any], values: Sequence[str], groups: Sequence[str], source: str) -> dict[str, Any]:
    """The sections of ``tree`` as dicts whose names are looked up, for all that follows goes by the names."""
    known, named = around(tree, values), {}
    for group in groups:
        given = tree.get(group)
        if isinstance(given, str) and "${" in given:
            given = trees.escaped(looked_up(known, group))  # all of it is looked up again, and may not become another thing then
        elif isinstance(given, dict) and isinstance(given.get("name"), str):
            given = {**given, "name": trees.escaped(looked_up({**known, group: given}, group, "name"))}
        if given is not None or group != "schedule":
            named[group] = _named(group, given, source)
    return named


def name_of(group: str, overrides: Sequence[str]) -> str | None:
    """The name that ``key=value`` overrides pick for a section, looked up where it is a ${...}; None where they pick none."""
    picks, values = parse(overrides, SECTIONS)
    return _names(picks, values, (group,), "the command line")[group]["name"] if group in picks else None


def _advice(tree: Mapping[str, Any], values: Sequence[str], source: str) -> presets.Advice:
    """What the sampler's file says for the operator of ``tree`` (sections with names), whose kind may be among the overrides ``values``."""
    operator = _section("operator", tree["operator"], source)
    field = schema.fields_of(resolve("operator", operator["name"])).get("kind")
    kind = looked_up(around({**tree, "operator": operator}, values), "operator", "kind")
    kind = field.default if kind is None and field is not None else kind
    file, path = _file("sampler", tree["sampler"]["name"])
    return presets.advise(file, operator["name"], kind if isinstance(kind, str) else None, path)


def _file(group: str, name: str) -> tuple[dict[str, Any], str]:
    """The contents and the path of ``configs/<group>/<name>.yaml``; nothing where there is no such file."""
    file = component_file(group, name) if "/" not in name else None
    return ({}, "") if file is None else (_read(file), str(file))


def _named(group: str, given: Any, source: str) -> dict[str, Any]:
    """A section as it was given, as a dict with a name."""
    if given is None:
        raise ConfigError(f"{source} has no section {group}; its names are: {', '.join(names(group))}")
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, dict):
        raise ConfigError(f"{group} = {given!r}: expected a name or keys; the names are: {', '.join(names(group))}")
    if group == "data" and "measurement" in values:
        values = {"name": "measurement", **values}
    name = values.get("name")
    if name == "???":
        raise ConfigError(f"{group}.name is missing: it is ???, to be given; the names are: {', '.join(names(group))}")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{group}.name = {name!r}: expected one of {', '.join(names(group))}")
    return dict(values)


def _merge(tree: dict[str, Any], values: Sequence[str], groups: Sequence[str], top: Mapping[str, schema.Field]) -> dict[str, Any]:
    """``tree`` (sections with names) with the overrides ``values`` set and interpolations looked up."""

    def fields_of(group: str) -> Mapping[str, schema.Field]:
        if not group:
            return top
        known = schema.fields_of(resolve(group, tree[group]["name"]), skip=_INJECTED.get(group, {}))
        return known | (_SHARD if group == "data" else {})

    merged = dict(tree)
    for text in values:
        section, key, value = value_of(text, groups, fields_of)
        merged[section] = value if key is None else {**merged[section], key: value}
    plain = looked_up(merged)
    assert isinstance(plain, dict)
    return plain


def _component(group: str, values: dict[str, Any]) -> Component:
    name = values.pop("name")
    factory = resolve(group, name)
    injected = _INJECTED.get(group, {})
    for key in values:
        if key in injected:
            raise ConfigError(f"{group}.{key} cannot be set: {injected[key]}")
    fields = schema.fields_of(factory, skip=injected) | (_SHARD if group == "data" else {})
    if group == "operator" and "target" in fields:
        unseen = {key: schema.Field(Any) for key in values if key not in fields}
        fields |= unseen if code_is_refused() else _fields_of_target(values.get("target"), injected)
    checked = schema.check(group, name, values, fields)
    if group == "operator" and "parts" in checked:
        checked["parts"] = [_part(part, place) for place, part in enumerate(checked["parts"])]
    return Component(group, name, checked)


def _fields_of_target(target: Any, injected: Mapping[str, str]) -> dict[str, schema.Field]:
    """The keys of a user's own factory, which this imports: they stand beside ``target``."""
    if not isinstance(target, str):
        return {}
    from operators.core.custom import load_target

    try:
        return schema.fields_of(load_target(target), skip=injected)
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"operator.target = {target}: {one_line(error)}") from error


def _part(part: Any, place: int) -> dict[str, Any]:
    """One operator of a list ``operator.parts`` (a name, or a mapping with one), checked and completed."""
    source = f"operator.parts[{place}]"
    try:
        component = _component("operator", _section("operator", part, source))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return {"name": component.name, **component.values}
