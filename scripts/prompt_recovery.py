"""Does P2L find the prompt? How often the tuned embedding is nearest to the true class, and what reconstruction gains by it.

    python scripts/prompt_recovery.py --json runs/prompts.json                               # as the preset has it
    python scripts/prompt_recovery.py --steps 50 --precision bf16 --json runs/tables/prompts.json  # what the README holds
    python scripts/prompt_recovery.py K=2 --grid class_lr=0.1,0.3 "tuned=[1,.inf],[2,.inf]" --unseen --json runs/sweep.json

Per task (SR x8, a missing box) and setting of P2L, on the same measurements of glyphs that the prior has not seen: reconstruction
with the prompt tuned from null, with null, with the true class, and with a wrong one (the next in the table, shifted by 7), all
by P2L with the same projection and gradient step. Key=value arguments change the preset configs/sampler/p2l.yaml, --grid lists
values, of which every combination is run. Settings are chosen with --unseen (other renderings in the training faces), and
reported without. What stands in the --json file is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tables_common import Incomplete, precision_option
from tables_common import markdown as lines_of
from torch import Tensor
from tune import combinations, parse_grid

from invsolve import Posterior, load_prior, sample
from invsolve.config import load
from invsolve.data.items import EVALUATION_SEED
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.samplers import P2L
from invsolve.samplers.parts import prompts
from invsolve.schedules import ScaledLinear
from operators import Inpainting, SuperResolution

Row = dict[str, Any]
PRESETS = {"sr8": "glyph_sr4", "box": "glyph_inpaint_p2l"}
"""Per task the preset of a run whose operator is of the same family."""

TASKS = tuple(PRESETS)
NAMES = {"sr8": "super-resolution x8", "box": "box of 28 x 28 missing"}
REFERENCES = ("null", "true", "wrong")
TUNING = ("K", "within", "class_lr", "lr", "lr_unit", "adam", "tuned", "rehearsals", "radius", "penalty", "spread")
"""Settings of P2L that do not matter with K = 0, so that runs with a fixed prompt are shared between them."""


@dataclass
class Prompts:
    """An observer that keeps the embeddings that rows ended with, (rows, *E)."""

    found: Tensor | None = None

    def __call__(self, event: Any) -> None:
        pass

    def finish(self, rows: Any, values: Mapping[str, Any]) -> None:
        if values.get("prompt") is not None:
            self.found = values["prompt"] if self.found is None else torch.cat([self.found, values["prompt"]])


@dataclass(frozen=True)
class Study:
    """A prior with a table of classes, images (B, C, H, W) with their classes (B,), one task, and how to run it."""

    prior: Any
    truth: Tensor
    labels: Tensor
    operator: Any
    sigma: float
    steps: int
    samples: int = 1
    seed: int = 0

    def table(self) -> Tensor:
        """The embeddings of the classes (N, *E)."""
        table = prompts.class_embeddings(self.prior)
        if table is None:
            raise SystemExit("this prior has no table of classes, in which a prompt could be looked up")
        return table

    def run(self, sampler: P2L, labels: Tensor | None = None) -> Row:
        """`psnr` of each image (mean over its samples), `seconds` a sample, network calls; `prompts` (B * samples, *E) if tuned."""
        prior = self.prior if labels is None else self.prior.conditioned(self.table()[labels])
        ids = [f"glyph{k}" for k in range(len(self.truth))]
        y = self.operator.measure(self.truth, self.sigma, seed=self.seed, ids=ids)
        watch, before, start = Prompts(), self._calls(), time.perf_counter()
        target = Posterior(prior, GaussianLikelihood(self.operator, y, self.sigma))
        schedule = ScaledLinear(steps=self.steps)
        draws = sample(sampler, target, schedule, n=self.samples, seed=self.seed, ids=ids, progress=False, observe=watch).cpu().float()
        error = ((draws.clamp(-1, 1) - self.truth[:, None].cpu()) / 2).square().flatten(2).mean(2)
        row = {"psnr": (-10 * error.log10()).mean(1).tolist(), "seconds": (time.perf_counter() - start) / draws.shape[0] / draws.shape[1]}
        row |= {name: count - before[name] for name, count in self._calls().items()}
        return row | ({} if watch.found is None else {"prompts": watch.found})

    def _calls(self) -> dict[str, int]:
        return dict(vars(self.prior.calls)) if hasattr(self.prior, "calls") else {}


def nearest(prompts: Tensor, table: Tensor, null: Tensor) -> dict[str, Tensor]:
    """The nearest class (R,) of each embedding: by distance, by angle, and by angle as seen from the null embedding."""

    def angle(origin: Tensor | float) -> Tensor:
        a, b = ((v - origin).flatten(1) for v in (prompts, table))
        return (torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).mT).argmax(1)

    return {"euclid": torch.cdist(prompts.flatten(1), table.flatten(1)).argmin(1), "cosine": angle(0.0), "cosine_from_null": angle(null)}


def tuned_row(study: Study, sampler: P2L) -> Row:
    """The run from the null embedding: how often the nearest class is the true one, and how far prompts went."""
    row, table, null = study.run(sampler), study.table(), study.prior.null
    prompts = row.pop("prompts")
    labels = study.labels.repeat_interleave(study.samples).to(prompts.device)
    found = nearest(prompts, table.to(prompts), null.to(prompts))
    row["recovered"] = {kind: float((k == labels).double().mean()) for kind, k in found.items()}
    row["nearest"] = {kind: k.tolist() for kind, k in found.items()}
    # 1 is the distance of a class from null, root mean square over the table.
    unit = (table - null).flatten(1).square().sum(1).mean().sqrt()
    row["moved"] = float((prompts - null.to(prompts)).flatten(1).norm(dim=1).mean() / unit)
    return row


def reference_labels(study: Study, kind: str) -> Tensor | None:
    """The classes whose embeddings the prior is given; None leaves it the null embedding."""
    shifted = (study.labels + 7) % len(study.table())
    return {"null": None, "true": study.labels, "wrong": shifted}[kind]


def preset(task: str, overrides: Mapping[str, str]) -> P2L:
    """configs/sampler/p2l.yaml as a run of the task takes it, with these values (as YAML) in place of its own. Raises ConfigError."""
    changes = [f"sampler.{key}={text}" for key, text in overrides.items()]
    section = load(PRESETS[task], ["sampler=p2l", *changes]).sections["sampler"]
    return P2L(**section.values)


def operator_of(task: str, shape: Sequence[int], box: int) -> Any:
    return SuperResolution(shape, factor=8) if task == "sr8" else Inpainting(shape, kind="box", size=box, seed=0)


def wanted(setting: P2L) -> dict[str, P2L]:
    """Prompt -> the sampler that runs with it: fixed ones, and the tuned one if the setting tunes."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(P2L) if f.name in TUNING}
    fixed = replace(setting, **{**defaults, "K": 0})
    return dict.fromkeys(REFERENCES, fixed) | ({"tuned": setting} if setting.K else {})


def study_rows(study: Study, settings: Sequence[P2L], task: str, held: list[Row]) -> None:
    """Appends to `held` a row for each setting and each fixed prompt that has none yet."""
    for setting in settings:
        for prompt, sampler in wanted(setting).items():
            key = {"task": task, "prompt": prompt, "sampler": repr(sampler)}
            if any(all(row[k] == v for k, v in key.items()) for row in held):
                continue
            row = tuned_row(study, sampler) if prompt == "tuned" else study.run(sampler, reference_labels(study, prompt))
            held.append(key | {"psnr_mean": sum(row["psnr"]) / len(row["psnr"])} | row)
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in held[-1].items() if k not in ("psnr", "nearest")}
            print(shown, flush=True)


def stored(path: Path | None, what: Row) -> list[Row]:
    """The rows of a file of the same study. SystemExit if it is of another one."""
    if path is None or not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["what"] != what:
        raise SystemExit(f"{path} holds another study ({content['what']}); choose another file")
    return list(content["rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the preset of P2L")
    parser.add_argument("--grid", nargs="*", default=[], metavar="key=value,value")
    parser.add_argument("--prior", default="glyphs", help="a name or a folder")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sigma", type=float, default=0.05)
    parser.add_argument("--box", type=int, default=28, help="side of the missing box")
    parser.add_argument("--unseen", action="store_true", help="new renderings in the faces of training, for choosing settings")
    precision_option(parser, default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_intermixed_args()
    from invsolve.data.glyphs import glyphs

    prior = load_prior(options.prior, device=options.device, precision=options.precision, guidance=options.guidance)
    truth, labels = glyphs(EVALUATION_SEED, range(options.images), held_out=not options.unseen)
    truth, labels = truth.to(prior.device), labels.to(prior.device)
    given = dict(text.partition("=")[::2] for text in options.overrides)
    choices = combinations(parse_grid(options.grid))
    kept = ("prior", "guidance", "images", "samples", "steps", "sigma", "box", "unseen", "precision")
    what = {name: getattr(options, name) for name in kept}
    rows = stored(options.json, what)
    for task in options.tasks:
        operator = operator_of(task, tuple(truth.shape[1:]), options.box)
        study = Study(prior, truth, labels, operator, options.sigma, options.steps, options.samples)
        for choice in choices:
            study_rows(study, [preset(task, {**given, **choice})], task, rows)
            if options.json is not None:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps({"what": what, "rows": rows}, indent=1), encoding="utf-8")
    print(f"\nchance: {1 / len(Study(prior, truth, labels, None, 0.0, 1).table()):.3f}")
    print(markdown(rows))


def readme(content: Any) -> str:
    """The README's table: PSNR with each prompt, and how often the tuned one is nearest to the true class. Raises Incomplete."""
    lines = []
    for task in TASKS:
        samplers = {prompt: repr(sampler) for prompt, sampler in wanted(preset(task, {})).items()}
        rows = [row for row in content["rows"] if row["task"] == task]
        found = {row["prompt"]: row for row in rows if row["sampler"] == samplers[row["prompt"]]}
        if missing := [prompt for prompt in samplers if prompt not in found]:
            raise Incomplete(f"{NAMES[task]} has not been run, as the preset has it, with the prompt: {', '.join(missing)}")
        shares = found["tuned"]["recovered"]
        cells = [f"{found[prompt]['psnr_mean']:.2f}" for prompt in (*REFERENCES, "tuned")]
        lines.append([NAMES[task], *cells, *(f"{100 * shares[kind]:.0f} %" for kind in ("euclid", "cosine_from_null"))])
    head = ["task", *(f"{prompt} prompt" for prompt in (*REFERENCES, "tuned")), "true class nearest", "by angle from null"]
    return lines_of(head, lines)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| task | prompt | PSNR | nearest is true: euclid, cosine, from null | moved | s a sample | sampler |", "| --- " * 7 + "|"]
    for row in rows:
        found = ", ".join(f"{100 * v:.0f} %" for v in row["recovered"].values()) if "recovered" in row else ""
        moved = f"{row['moved']:.2f}" if "moved" in row else ""
        cells = (row["task"], row["prompt"], f"{row['psnr_mean']:.2f}", found, moved, f"{row['seconds']:.2f}", row["sampler"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
