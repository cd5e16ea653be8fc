"""Sweep the settings of any sampler on any preset, on training images alone, and write the best as a preset.

    python scripts/tune.py photo_sr4 --grid sampler.zeta=1,2,5 schedule.steps=50,100 --json runs/sweep.json
    python scripts/tune.py photo_sr4 sampler=mcg --grid sampler.weight=0,0.5,1,2 sampler.projection=soft,hard \
        --write configs/run/photo_sr4_mcg.yaml

Key=value arguments change the preset as in `invsolve run`; every combination of the values of --grid is then run on the same
measurements. Photographs are crops, at half resolution, of those that the prior was trained on, phantoms are of a stream of
their own: the evaluation images are never touched. The best setting is that with the highest PSNR of one sample (--by mean: of
the mean of the samples) among those whose residual ||y - A x|| / (sigma sqrt(m)), averaged over the samples, lies within
--residual. A sweep that was stopped continues from its --json file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from photo_table import crops
from score_prior import psnr
from tables_common import precision_option
from torch import Tensor
from training_data import training_photo_paths

from invsolve import Divergence, Posterior, sample
from invsolve.cli.listing import listing
from invsolve.config import schema
from invsolve.config.load import load
from invsolve.config.model import Component, Config
from invsolve.config.names import load_object, resolve
from invsolve.config.settings import Settings
from invsolve.data.glyphs import SIZE, glyph
from invsolve.data.items import EVALUATION_SEED
from invsolve.data.phantoms import phantom
from invsolve.errors import ConfigError
from invsolve.likelihoods import LIKELIHOODS
from invsolve.signals import as_shown

VARIED = ("motorcycle_left", "camera", "coins", "grace_hopper", "ihc", "brick")
"""Training photographs of different kinds, in the order in which they are taken."""

PHANTOM_SEED = 1
assert PHANTOM_SEED != EVALUATION_SEED

COLUMNS = {
    "psnr_sample": "PSNR sample",
    "psnr_mean": "PSNR mean",
    "residual": "residual",
    "forward": "network calls",
    "backward": "backward",
    "seconds": "s a sample",
}
Row = dict[str, Any]


def split_values(text: str) -> list[str]:
    """The parts of "1,[2,3],x" between commas that stand outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Key -> its values, as text. Raises ConfigError for what is not key=value,value."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = split_values(values)
        if not equals or not key or "" in found:
            raise ConfigError(f"--grid {text!r} is not key=value,value,... such as sampler.zeta=1,2,5")
        if key in grid or len(set(found)) < len(found):
            raise ConfigError(f"--grid {text!r} names a key or a value twice")
        grid[key] = found
    return grid


def combinations(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every choice of one value for each key, the last key varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def training_images(data: Component, count: int, size: int | None) -> Tensor:
    """`count` training images (count, C, size, size) in [-1, 1], of the kind and (by default) the size of the preset's data.

    Raises ConfigError for data that there is no training set for.
    """
    if data.name == "glyphs" and count >= 1 and size in (None, SIZE):
        return torch.stack([glyph(PHANTOM_SEED, k)[0] for k in range(count)])
    side = size if size is not None else data.values.get("size")
    if not isinstance(side, int) or count < 1:
        raise ConfigError(f"--images {count} of side {side}: whole numbers >= 1 are needed; give --size")
    if data.name == "phantom":
        return torch.stack([phantom(PHANTOM_SEED, k, side) for k in range(count)])
    if data.name != "images":
        raise ConfigError(f"data {data.name}: a sweep needs images, phantoms or glyphs (64 x 64), for which there are training images")
    known = {path.stem: path for path in training_photo_paths()}
    each = math.ceil(count / len(VARIED))
    found = crops([known[stem] for stem in VARIED], side, each)
    # One crop of each photograph before a second of any.
    return found.unflatten(0, (len(VARIED), each)).transpose(0, 1).flatten(0, 1)[:count]


@dataclass(frozen=True)
class Trial:
    """One setting on the training images: the resolved configuration, the prior, the truth (B, C, H, W), samples per image."""

    config: Config
    prior: Any
    truth: Tensor
    samples: int

    def run(self) -> Row:
        """PSNR of a sample and of the mean (dB, averaged over images), residual, network calls of a trajectory, seconds a sample.

        A trajectory that diverges, or a setting that the sampler refuses, gives a row with `failed` in place of numbers.
        """
        parts, seed = self.config.sections, self.config.settings.seed
        noise, schedule = parts["noise"].build(), parts["schedule"].build()
        ids = [f"train{k}" for k in range(len(self.truth))]
        operator = parts["operator"].build(image_shape=tuple(self.truth.shape[1:])).for_ids(ids)
        y = operator.measure(self.truth, noise, seed=seed, ids=ids)
        likelihood = load_object(LIKELIHOODS[parts["noise"].name])(operator, y, **noise.parameters)
        try:
            sampler = parts["sampler"].build()
            watch = _Watch(sampler.watch() if hasattr(sampler, "watch") else None)
            before, start = self._calls(), time.perf_counter()
            draws = sample(
                sampler, Posterior(self.prior, likelihood), schedule,
                n=self.samples, seed=seed, ids=ids, progress=False, observe=watch, memory_gb=1.0,
            ).float().cpu()  # fmt: skip
            seconds, after = time.perf_counter() - start, self._calls()
        except (Divergence, ValueError, TypeError, RuntimeError) as error:
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        row = self.scores(operator, draws, None if watch.inner is None else watch.inner.moments(ids)[0].float().cpu())
        row["residual"] = float(torch.stack([likelihood.discrepancy(s.to(y)) for s in draws.unbind(1)]).mean())
        row |= {name: (after[name] - before[name]) / watch.chunks for name in after}
        return row | {"seconds": seconds / draws.shape[0] / draws.shape[1]}

    def scores(self, operator: Any, draws: Tensor, mean: Tensor | None = None) -> Row:
        """PSNR of samples (B, n, C, H, W) and of their mean, under the symmetries of the operator; magnitudes if complex."""
        truth = _shown(self.truth)
        closest = [operator.align(s, self.truth) for s in draws.unbind(1)]
        if mean is None:
            mean = torch.stack([operator.align(s, closest[0]) for s in draws.unbind(1)]).mean(0)
        each = [psnr(_shown(s), truth) for s in closest]
        return {"psnr_sample": sum(each) / len(each), "psnr_mean": psnr(_shown(operator.align(mean, self.truth)), truth)}

    def _calls(self) -> dict[str, int]:
        calls = getattr(self.prior, "calls", None)
        return {} if calls is None else dict(vars(calls))


class _Watch:
    """An observer that counts the chunks of a run, and passes all on to the sampler's own observer where there is one."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.chunks = inner, 0

    def __call__(self, event: Any) -> None:
        self.chunks += event.index == 0
        if self.inner is not None:
            self.inner(event)

    def finish(self, rows: Any, fields: dict[str, Any]) -> None:
        if hasattr(self.inner, "finish"):
            self.inner.finish(rows, fields)


def _shown(x: Tensor) -> Tensor:
    return torch.stack([as_shown(image) for image in x])


def best_of(rows: Sequence[Row], window: Sequence[float], by: str) -> Row:
    """The row with the highest PSNR (`by` "sample" or "mean") whose residual lies within `window`. ConfigError if there is none."""
    ran = [row for row in rows if "failed" not in row]
    fit = [row for row in ran if window[0] <= row["residual"] <= window[1]]
    if not fit:
        residuals = f"{min(r['residual'] for r in ran):.2f} to {max(r['residual'] for r in ran):.2f}" if ran else "none, for all failed"
        raise ConfigError(
            f"no setting has a residual within {window[0]:g} to {window[1]:g} (they are {residuals}); widen --residual or the grid"
        )
    return max(fit, key=lambda row: float(row[f"psnr_{by}"]))


def markdown(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """The rows as a Markdown table: the keys of the grid, then the numbers."""
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = ["| " + " | ".join([*keys, *(COLUMNS[name] for name in shown)]) + " |", "| --- " * (len(keys) + len(shown)) + "|"]
    for row in rows:
        settings = [row["settings"][key] for key in keys]
        numbers = (
            [row["failed"]] if "failed" in row else [f"{row[n]:.0f}" if n in ("forward", "backward") else f"{row[n]:.2f}" for n in shown]
        )
        lines.append("| " + " | ".join([*settings, *numbers]) + " |")
    return "\n".join(lines)


def preset_text(config: Config, title: str, found: str) -> str:
    """A preset in YAML: a title, how the settings were found, and what differs from the defaults of the classes.

    So does what the sampler's file advises, which the preset is to hold whatever becomes of that file.
    """
    width = max(map(len, config.sections)) + 1
    lines = [f"# {title}", *(f"# {line}" for line in found.splitlines())]
    for group, part in config.sections.items():
        factory = resolve(group, part.name)
        defaults = {key: field.default for key, field in schema.fields_of(factory).items()}
        given = {k: value for k, value in part.values.items() if k in part.advised or k not in defaults or value != defaults[k]}
        lines.append(f"{group + ':':<{width}} {_flow({'name': part.name, **given})}")
    for field in fields(Settings):
        value = getattr(config.settings, field.name)
        if field.name in ("samples", "seed") or (field.name != "out" and value != field.default):
            lines.append(f"{field.name}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    plain = json.loads(json.dumps(value))  # tuples as lists
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("\n...\n").strip()


def family_text(config: Config, settings: Mapping[str, str], found: str) -> str:
    """The swept settings of the sampler as an entry of ``families`` in configs/sampler/<name>.yaml, for the operator that was swept."""
    operator, sampler = config.sections["operator"], config.sections["sampler"]
    kind = operator.values.get("kind")
    name = f"{operator.name}/{kind}" if isinstance(kind, str) else operator.name
    lines = [f"  - operators: [{name}]"]
    lines += [f"    {key}: {_flow(value)}" for key, value in sampler.values.items() if f"sampler.{key}" in settings]
    return "\n".join([*lines, "    found: >-", *(f"      {line}" for line in found.splitlines())])


def provenance(config: Config, truth: Tensor, grid: Mapping[str, Sequence[str]], best: Row, samples: int) -> str:
    """How a setting was found: on what, among what, and how good it was."""
    kind = {"phantom": "phantoms", "glyphs": "characters"}.get(config.sections["data"].name, "photographs")
    tried = "; ".join(f"{key} {', '.join(values)}" for key, values in grid.items())
    return (
        f"Found by scripts/tune.py on {len(truth)} training {kind} ({truth.shape[-1]} x {truth.shape[-1]}) among {tried}:\n"
        f"PSNR of one sample {best['psnr_sample']:.2f} dB, of the mean of {samples} {best['psnr_mean']:.2f} dB, "
        f"residual {best['residual']:.2f}."
    )


def write_preset(path: Path, config: Config, title: str, found: str) -> None:
    """Writes the preset, once it has been read back to the same configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.part.yaml")
    part.write_text(preset_text(config, title, found), encoding="utf-8")
    if load(part).sections != config.sections:
        raise RuntimeError(f"{part} does not read back to the configuration that was tuned")
    part.replace(path)


def stored_rows(path: Path | None, what: Row) -> list[Row]:
    """The rows of a sweep that was begun in this file. ConfigError if the file is that of another sweep."""
    if path is None or not path.is_file():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))
    differs = [key for key in what if held.get(key) != what[key]]
    if differs:
        raise ConfigError(f"--json {path} holds a sweep with another {differs[0]} ({held.get(differs[0])!r}); choose another file")
    return list(held["rows"])


def sweep(options: argparse.Namespace) -> tuple[list[Row], dict[str, list[str]], Tensor]:
    """Runs what is not in the JSON file yet; the rows of the grid in its order, the grid, and the images."""
    grid = parse_grid(options.grid)
    base = load(options.preset, options.overrides)
    truth = training_images(base.sections["data"], options.images, options.size)
    what = {
        "preset": options.preset, "overrides": options.overrides, "images": len(truth), "side": truth.shape[-1],
        "samples": options.samples, "precision": options.precision,
    }  # fmt: skip
    rows, priors = stored_rows(options.json, what), dict[str, Any]()
    for settings in combinations(grid):
        if any(row["settings"] == settings for row in rows):
            continue
        given = [] if options.precision is None else [f"prior.precision={options.precision}"]
        config = load(options.preset, [*options.overrides, *given, *(f"{key}={value}" for key, value in settings.items())])
        key = repr(config.sections["prior"])
        if key not in priors:
            priors[key] = config.sections["prior"].build(device=options.device)
        rows.append({"settings": settings, **Trial(config, priors[key], truth, options.samples).run()})
        print({**settings, **{k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items() if k != "settings"}}, flush=True)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**what, "rows": rows}, indent=1), encoding="utf-8")
    wanted = combinations(grid)
    return [next(row for row in rows if row["settings"] == settings) for settings in wanted], grid, truth


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("preset", help="a name in configs/run, or a YAML file")
    out.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the preset for all of the sweep, such as sampler=daps")
    out.add_argument("--grid", nargs="+", required=True, metavar="key=value,value", help="what is swept")
    out.add_argument("--images", type=int, default=6)
    out.add_argument("--samples", type=int, default=2, help="for each image")
    out.add_argument("--size", type=int, default=None, help="side of the images (default: data.size of the preset)")
    out.add_argument("--by", choices=["sample", "mean"], default="sample", help="whose PSNR is to be highest")
    out.add_argument("--residual", type=float, nargs=2, default=[0.5, 1.5], metavar=("LOW", "HIGH"))
    precision_option(out, default=None)
    out.add_argument("--device", default="auto")
    out.add_argument("--json", type=Path, default=None, help="where the rows are kept; an unfinished sweep continues from it")
    out.add_argument("--write", type=Path, default=None, help="the preset to write with the best setting")
    out.add_argument("--title", default=None, help="its first line (default: that of the preset, and the sampler)")
    return out


def main() -> None:
    command = parser()
    options = command.parse_intermixed_args()
    try:
        rows, grid, truth = sweep(options)
        print("\n" + markdown(rows, list(grid)))
        best = best_of(rows, options.residual, options.by)
        chosen = [f"{key}={value}" for key, value in best["settings"].items()]
        print(f"\nbest by PSNR of the {options.by}, residual within {options.residual[0]:g} to {options.residual[1]:g}: {' '.join(chosen)}")
        config = load(options.preset, [*options.overrides, *chosen])
        found = provenance(config, truth, grid, best, options.samples)
        print(f"as an entry of configs/sampler/{config.sections['sampler'].name}.yaml:\n{family_text(config, best['settings'], found)}")
        if options.write is not None:
            sampler = config.sections["sampler"].name
            inherited = dict(listing("run")).get(options.preset, options.preset).rstrip(".")
            write_preset(options.write, config, options.title or f"{inherited}; sampled by {sampler}.", found)
            print(f"wrote {options.write}")
    except ConfigError as error:
        command.exit(2, f"tune.py: {error}\n")


if __name__ == "__main__":
    main()
