"""The command ``invsolve calibrate``."""

from __future__ import annotations

import json as to_json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from invsolve.config.names import load_object, names, resolve, table
from invsolve.errors import ConfigError

if TYPE_CHECKING:
    from invsolve.config.model import Component
    from invsolve.diagnostics.calibrate import Calibration, Finding
    from invsolve.diagnostics.problems import Problem

_HELP = """\
examples:
  invsolve calibrate sampler=dps operator=inpainting
  invsolve calibrate sampler=daps sampler.prior_std=0.3 operator=gaussian_blur noise.sigma=0.05 schedule.steps=100
  invsolve calibrate sampler=dps                    without an operator: in the plane, one of two numbers measured
  invsolve calibrate sampler=dps operator=phase_retrieval problem=gaussian images=256 json=found.json

Truths are drawn from a Gaussian prior and from one of two modes, measured, and reconstructed; no data set and no network.
keys: sampler, operator, noise (default gaussian with sigma 0.1), schedule and their KEYs; problem (both, gaussian or mixture),
image_shape (default: the first of [1,8,8], [3,8,8], [2,8,8] and the same of 16 and 32 that the operator takes and changes), images
(pairs of truth and measurement, 128), draws (of each, 39), seed, tolerance (0.1: a standard deviation off by 10 %, a mean by 0.1
standard deviations), level (0.01: of a false alarm), json (a new file; - prints it instead of the table).

Settings of the sampler that are not given are the defaults of its class, for those in configs/sampler were tuned on photographs;
the schedule is that of a run. It takes seconds where steps are few and solves in closed form, and minutes for long chains: take
fewer images and draws there. Exit code 0 if calibrated, 1 if not.
"""
HELP = ("calibrate", "hold a sampler against posteriors that are known", _HELP)

_SHAPES = tuple((channels, side, side) for side in (8, 16, 32) for channels in (1, 3, 2))
_SIGMA = 0.1


@dataclass(frozen=True)
class CalibrateSettings:
    """What ``invsolve calibrate`` needs beside sampler, operator, noise and schedule."""

    problem: Literal["both", "gaussian", "mixture"] = "both"
    image_shape: tuple[int, ...] | None = None
    images: int = 128
    draws: int = 39
    seed: int = 0
    tolerance: float = 0.1
    level: float = 0.01
    json: str | None = None
    progress: bool = True


def calibrate(overrides: Sequence[str], overwrite: bool = False) -> int:
    """Prints what was found on each problem that the ``key=value`` overrides describe; 0 if calibrated, else 1.

    The file of ``json`` is refused if it exists, unless ``overwrite``.
    """
    from pathlib import Path

    from invsolve.atomic import refuse_existing

    sections, settings, given = _assembled(overrides)
    if settings.json not in (None, "-"):
        refuse_existing(Path(settings.json), overwrite)
    sampler, schedule = sections["sampler"].build(), sections["schedule"].build()
    problems = _problems(sections, settings, given)
    from invsolve.diagnostics.calibrate import calibrate as measure
    from invsolve.diagnostics.calibrate import sampler_draws
    from invsolve.errors import Unfit

    quiet = settings.json == "-"
    if not quiet:
        print(f"{sampler}\n{schedule}")
    draw = sampler_draws(sampler, schedule, settings.progress and not quiet)
    plain = {key: getattr(settings, key) for key in ("images", "draws", "seed", "tolerance", "level")}
    found = []
    for problem in problems:
        try:
            found.append(measure(draw, problem, **plain))
        except (ValueError, Unfit) as error:
            raise ConfigError(" ".join(str(error).split())) from error
        if not quiet:
            print(f"\n{_described(problem, found[-1])}\n{findings(found[-1])}\n{verdict(found[-1])}", flush=True)
    if settings.json is not None:
        _write(settings.json, {"sampler": str(sampler), "schedule": str(schedule), **plain}, found)
    return 0 if all(one.passed for one in found) else 1


def _assembled(overrides: Sequence[str]) -> tuple[dict[str, Component], CalibrateSettings, set[str]]:
    """The checked sections and settings, and which of operator and noise were given."""
    from invsolve.config import schema
    from invsolve.config.load import assemble, name_of

    keys = [text.partition("=")[0] for text in overrides]
    picks = [text for text, key in zip(overrides, keys, strict=True) if key in ("sampler", "sampler.name")]
    name = name_of("sampler", overrides)
    if name is None:
        raise ConfigError(f"sampler=NAME is needed; the names are: {', '.join(names('sampler'))}")
    given = {key.partition(".")[0] for key in keys} & {"operator", "noise"}
    if "operator" in given and not {"operator", "operator.name"} & set(keys):
        raise ConfigError(f"operator=NAME is needed; the names are: {', '.join(names('operator'))}")
    # What a file in configs/sampler advises was tuned on photographs; a name that is nothing but such a file asks for it.
    values = schema.fields_of(resolve("sampler", name)) if name in table("sampler") else {}
    defaults = {key: field.default for key, field in values.items() if field.default is not schema.REQUIRED}
    tree: dict[str, Any] = {"sampler": {"name": name, **_plain(defaults)}, "noise": {"name": "gaussian", "sigma": _SIGMA}}
    tree["operator"] = "identity"
    rest = [text for text in overrides if text not in picks]
    groups = ("operator", "noise", "schedule", "sampler")
    sections, settings = assemble(tree, rest, groups, CalibrateSettings, "the command line", "calibrate")
    return sections, settings, given


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _problems(sections: dict[str, Component], settings: CalibrateSettings, given: set[str]) -> list[Problem]:
    """The problems to be measured on: in the plane without an operator, else on images."""
    pass
    from invsolve.diagnostics.problems import image_problem, plane_problem
    from invsolve.likelihoods import LIKELIHOODS

    kinds = ("gaussian", "mixture") if settings.problem == "both" else (settings.problem,)
    noise = sections["noise"].build()
    gaussian = sections["noise"].name in ("gaussian", "complex_gaussian")
    if gaussian and noise.std == 0:
        raise ConfigError("noise.sigma = 0: a posterior that can be compared with needs sigma > 0")
    if "operator" not in given:
        if sections["noise"].name != "gaussian":
            raise ConfigError(f"noise = {sections['noise'].name}: without an operator the noise is gaussian; name one with operator=NAME")
        return [plane_problem(kind, noise if "noise" in given else None) for kind in kinds]
    operator = _operator(sections["operator"], _SHAPES if settings.image_shape is None else (settings.image_shape,))
    likelihood = load_object(LIKELIHOODS[sections["noise"].name])
    sigma = noise.parameters["sigma"] if gaussian and operator.linear else None
    try:
        return [image_problem(kind, operator, noise, partial(likelihood, **noise.parameters), sigma) for kind in kinds]
    except ValueError as error:
        raise ConfigError(f"image_shape = {list(operator.image_shape)}: {error}") from error


def _operator(component: Component, shapes: Sequence[tuple[int, ...]]) -> Any:
    """The operator for the first of ``shapes`` that it takes and changes, or else takes. Raises the ConfigError of the first."""
    import torch

    refusals, taken = [], None
    for shape in shapes:
        try:
            operator = component.build(image_shape=shape)
        except ConfigError as error:
            refusals.append(error)
            continue
        x = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(1, *shape)
        if operator.for_ids([0]) is not operator:
            raise ConfigError(f"operator {component.name}: differs from image to image; one operator for all is needed (per_image=false)")
        # Colourisation of a single channel, for one, is the identity.
        if not _same(operator.A(x), x):
            return operator
        taken = taken or operator
    if taken is None:
        raise refusals[0]
    return taken


def _same(y: Any, x: Any) -> bool:
    return y.shape == x.shape and bool((y - x).abs().max() < 1e-9)


def _described(problem: Problem, found: Calibration) -> str:
    """What was measured, in a line or two."""
    from operators import Matrix

    titles = {"gaussian": "a Gaussian prior", "mixture": "a prior of two modes"}
    shape = "two numbers" if isinstance(problem.operator, Matrix) and problem.operator.image_shape == (2,) else "images"
    text = f"{titles[found.problem]}, {shape} {tuple(problem.operator.image_shape)}, {type(problem.operator).__name__}, {_noise(problem)}"
    pairs = f"{found.images} truths and measurements, {found.draws} draws for each"
    if found.measured is None:
        return f"{text}\n{pairs}; the exact posterior is not known here, so that the draws are held against truths alone"
    seen, size = found.measured
    return f"{text}\n{pairs}; y tells of {seen} of {size} directions more than the prior"


def _noise(problem: Problem) -> str:
    noise = problem.noise
    return noise.describe() if hasattr(noise, "describe") else f"Gaussian noise, sigma {noise:g}"


def findings(found: Calibration) -> str:
    """The findings as lines of text."""
    rows = [("", "sampler", "", "exact draws", "accepted", "")]
    for f in found.findings:
        error = "" if f.error is None else f"\N{PLUS-MINUS SIGN} {f.error:.3f}"
        value = f"{f.value:.3f}" if abs(f.value) < 1e4 else f"{f.value:.3g}"
        control = "" if f.control is None else f"{f.control:.3f}"
        rows.append((f.label, value, error, control, _accepted(f), "OFF" if f.off else ""))
    a, b, c, d, e, _ = (max(len(row[place]) for row in rows) for place in range(6))
    lines = (f"  {r[0]:<{a}}  {r[1]:>{b}} {r[2]:<{c}}  {r[3]:>{d}}  {r[4]:<{e}}  {r[5]}" for r in rows)
    return "\n".join(line.rstrip() for line in lines)


def _accepted(f: Finding) -> str:
    if f.p is not None:
        return f"p = {f.p:.2g}"
    if f.low is None or f.high is None:
        return ""
    return f"up to {f.high:.3f}" if f.low == 0 else f"{f.low:.3f} to {f.high:.3f}"


def verdict(found: Calibration) -> str:
    """The verdict, a line for each reason."""
    if found.passed:
        return "calibrated: nothing is off by more than the tolerance and sampling error"
    return "NOT CALIBRATED:\n" + "\n".join(f"  - {reason}" for reason in found.reasons)


def _write(target: str, about: dict[str, Any], found: Sequence[Calibration]) -> None:
    from pathlib import Path

    from invsolve.atomic import replacing

    whole = {**about, "passed": all(one.passed for one in found), "problems": [one.as_dict() for one in found]}
    text = to_json.dumps(whole, indent=2, allow_nan=False, default=str) + "\n"
    if target == "-":
        print(text, end="")
        return
    with replacing(Path(target)) as path:
        path.write_text(text, encoding="utf-8")
