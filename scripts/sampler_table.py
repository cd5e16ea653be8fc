"""The README's table of samplers and tasks: every sampler with its preset, on images that no setting was chosen on.

    python scripts/sampler_table.py --sizes 64 --json runs/table.json                 # run again to continue
    python scripts/sampler_table.py --tasks photo_sr4 --samplers daps dps --samples 8
    python scripts/sampler_table.py --latent --sigmas 0.01 0.05 --json runs/latent.json
    python scripts/sampler_table.py --readme --json runs/table.json                   # what the README's table holds

A cell is what `invsolve run TASK sampler=NAME` does: PSNR in dB and SSIM of one sample and of the mean of the samples (of PnP-ULA
the mean of its chains), residual of the samples in units of the noise, seconds and network calls of a sample. Beside each
task stands a classical method whose weight an oracle chose on the very images: total variation, SENSE with total variation
for MRI, hybrid input-output (free of weights, 16 restarts) for phase retrieval, and the measurement itself for clipped images.

Photographs are crops of the evaluation photographs at half resolution, phantoms of the evaluation stream. DPS and MCG take a
step of the same length whatever the size of the image; their presets are for 64 x 64 and scaled with the side here.
With --latent: characters in faces and on backgrounds that the latent prior has not seen, and the samplers for codes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mri_table import TV_WEIGHTS as MRI_TV_WEIGHTS
from tables_common import Incomplete, Kept, Row, command_line, crops, oracle, photos, precision_option, psnr, total_variations
from tables_common import markdown as lines_of
from torch import Tensor
from tune import Trial

from invsolve import load_prior
from invsolve.config.load import load
from invsolve.config.model import Config
from invsolve.data.glyphs import glyph
from invsolve.data.items import EVALUATION_SEED
from invsolve.data.phantoms import phantoms
from invsolve.errors import ConfigError
from invsolve.resources import shipped_priors
from invsolve.signals import as_shown
from operators.mri import baselines
from operators.phase.baselines import hybrid_input_output

TASKS = ("photo_inpaint", "photo_random", "photo_sr4", "photo_deblur", "photo_motion", "photo_hdr", "phase_retrieval", "mri_phantom")
SAMPLERS = ("dps", "mcg", "daps", "pnp_ula")
PHOTO_TASKS = TASKS[:7]
LATENT_TASKS = ("glyph_sr4", "glyph_inpaint_p2l", "glyph_deblur", "glyph_random")
LATENT_SAMPLERS = ("resample", "p2l", "psld", "latent_dps", "latent_daps")
NAMES = {
    "photo_inpaint": "box of 24 x 24 missing",
    "photo_random": "70 % of the pixels missing",
    "photo_sr4": "super-resolution x4",
    "photo_deblur": "Gaussian blur of 2 pixels",
    "photo_motion": "motion blur over 15 pixels",
    "photo_hdr": "clipped (HDR)",
    "phase_retrieval": "phase retrieval",
    "mri_phantom": "MRI x4",
    "glyph_sr4": "super-resolution x4",
    "glyph_inpaint_p2l": "box of 32 x 32 missing",
    "glyph_deblur": "Gaussian blur of 2 pixels",
    "glyph_random": "70 % of the pixels missing",
    "dps": "DPS",
    "mcg": "MCG",
    "daps": "DAPS",
    "pnp_ula": "PnP-ULA",
    "resample": "ReSample",
    "p2l": "P2L",
    "psld": "PSLD",
    "latent_dps": "latent DPS",
    "latent_daps": "LatentDAPS",
}
MRI_SIZE, HIO_RESTARTS = 128, 16
GUIDANCE = {"dps": "zeta", "mcg": "weight"}


def magnitudes(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as they are shown and scored: photographs as they are, complex phantoms as magnitudes; in [-1, 1]."""
    return torch.stack([as_shown(image) for image in x])


def ssim(x: Tensor, truth: Tensor) -> float:
    """torchmetrics' SSIM, averaged over images, both brought from [-1, 1] to [0, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = ((t.clamp(-1, 1) + 1) / 2 for t in (magnitudes(x), magnitudes(truth)))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))


@dataclass(frozen=True)
class Plan:
    """What one cell of a table is measured on; `count` phantoms or characters; sigma None is that of the preset."""

    task: str
    sampler: str
    samples: int
    size: int = 64
    per_photo: int = 2
    count: int = 8
    sigma: float | None = None

    def key(self) -> Row:
        """What tells its row from the others."""
        crops_or_count = self.per_photo * len(photos()) if self.task in PHOTO_TASKS else self.count
        size = MRI_SIZE if self.task == "mri_phantom" else self.size
        key: Row = {"task": self.task, "size": size, "sampler": self.sampler, "images": crops_or_count, "samples": self.samples}
        return key if self.sigma is None else key | {"sigma": self.sigma}

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that measure at least as much."""
        key = self.key() | {"sigma": self.sigma}
        same = (r for r in rows if all(r.get(name) == key[name] for name in ("task", "size", "sampler", "sigma")))
        return [r for r in same if r["images"] >= key["images"] and r["samples"] >= key["samples"]]


LINEAR, HDR, PHASE, MRI = TASKS[:5], TASKS[5:6], TASKS[6:7], TASKS[7:]
DEBLUR = ("photo_deblur",)
OTHERS = tuple(task for task in LINEAR + HDR if task not in DEBLUR)
# The README's cells: side, tasks, sampler, crops of a photograph (phantoms: their number), samples.
README: tuple[tuple[int, tuple[str, ...], str, int, int], ...] = (
    (64, LINEAR + HDR, "classical", 2, 0),
    (64, OTHERS, "dps", 2, 4),
    (64, DEBLUR, "dps", 2, 16),
    (64, OTHERS, "mcg", 2, 4),
    (64, DEBLUR, "mcg", 2, 8),
    (64, LINEAR + HDR, "daps", 2, 8),
    (64, LINEAR + HDR, "pnp_ula", 1, 2),
    (64, PHASE, "classical", 1, 0),
    *((64, PHASE, sampler, 1, 4) for sampler in ("dps", "mcg", "daps")),
    (64, PHASE, "pnp_ula", 1, 2),
    (MRI_SIZE, MRI, "classical", 4, 0),
    *((MRI_SIZE, MRI, sampler, 4, 2) for sampler in ("dps", "mcg", "daps")),
    (MRI_SIZE, MRI, "pnp_ula", 4, 1),
    (128, LINEAR + HDR, "classical", 1, 0),
    (128, LINEAR + HDR, "daps", 1, 4),
    (128, ("photo_random", "photo_sr4", "photo_motion"), "mcg", 1, 2),
    (128, DEBLUR, "mcg", 1, 8),
    (128, ("photo_motion",), "dps", 1, 1),
    (128, ("photo_motion",), "pnp_ula", 1, 1),
)
LATENT_IMAGES, LATENT_SIGMAS = 32, (0.01, 0.05)
# LatentDAPS takes minutes a sample on a CPU.
FEW, FEW_IMAGES, FEW_SIGMAS = ("latent_daps",), 4, (0.05,)


def readme_plan() -> list[Plan]:
    """The cells of the README's table of samplers and tasks."""
    return [Plan(task, sampler, n, size, each, each) for size, tasks, sampler, each, n in README for task in tasks]


def latent_plan() -> list[Plan]:
    """The cells of the README's table of latent samplers."""
    cells = itertools.product(LATENT_SIGMAS, LATENT_TASKS, ("classical", *LATENT_SAMPLERS))
    return [
        Plan(task, sampler, 0 if sampler == "classical" else 1, count=FEW_IMAGES if sampler in FEW else LATENT_IMAGES, sigma=sigma)
        for sigma, task, sampler in cells
        if sampler not in FEW or sigma in FEW_SIGMAS
    ]


@dataclass(frozen=True)
class Cell(Trial):
    """A trial on evaluation images, scored by SSIM too, and by the sample of smallest residual."""

    def scores(self, operator: Any, draws: Tensor, mean: Tensor | None = None) -> Row:
        """Adds `ssim_sample` and `ssim_mean` to the scores of a trial."""
        row = super().scores(operator, draws, mean)
        closest = [operator.align(s, self.truth) for s in draws.unbind(1)]
        if mean is None:
            mean = torch.stack([operator.align(s, closest[0]) for s in draws.unbind(1)]).mean(0)
        row["ssim_sample"] = sum(ssim(s, self.truth) for s in closest) / len(closest)
        return row | {"ssim_mean": ssim(operator.align(mean, self.truth), self.truth)}


def configuration(task: str, sampler: str, size: int, changes: Sequence[str] = ()) -> Config:
    """The preset with another sampler, and the length of its guidance step scaled with the side."""
    config = load(task, [f"sampler={sampler}", *changes])
    if sampler in GUIDANCE and size != 64 and task.startswith("photo"):
        name = GUIDANCE[sampler]
        value = float(config.sections["sampler"].values[name]) * size / 64
        config = load(task, [f"sampler={sampler}", *changes, f"sampler.{name}={value:g}"])
    return config


def measured(config: Config, truth: Tensor) -> tuple[Any, Tensor]:
    """The operator of a configuration, and the measurement that a trial makes of these images."""
    ids = [f"train{k}" for k in range(len(truth))]
    operator = config.sections["operator"].build(image_shape=tuple(truth.shape[1:])).for_ids(ids)
    return operator, operator.measure(truth, config.sections["noise"].build(), seed=config.settings.seed, ids=ids)


def classical(task: str, config: Config, truth: Tensor) -> Row:
    """PSNR and SSIM of the classical method of a task, with the weight that is best on these images."""
    operator, y = measured(config, truth)
    start = time.perf_counter()
    found: Iterator[tuple[str, Tensor]]
    if task == "phase_retrieval":
        found = iter([("HIO", operator.align(hybrid_input_output(operator, y, restarts=HIO_RESTARTS), truth))])
    elif task == "mri_phantom":
        found = ((f"TV {w:g}", baselines.total_variation(operator, y, w)) for w in MRI_TV_WEIGHTS)
    elif not operator.linear:
        found = iter([("y / scale", y / operator.scale)])
    else:
        found = ((f"TV {weight:g}", x) for weight, x in total_variations(operator, y))
    value, name, best = oracle(found, lambda x: psnr(magnitudes(x), magnitudes(truth)))
    return {"method": name, "psnr_mean": value, "ssim_mean": ssim(best, truth), "seconds": (time.perf_counter() - start) / len(truth)}


def images(plan: Plan) -> Tensor:
    """What a cell is measured on."""
    if plan.task == "mri_phantom":
        return phantoms(EVALUATION_SEED, range(plan.count), MRI_SIZE)
    if plan.task in LATENT_TASKS:
        return torch.stack([glyph(EVALUATION_SEED, k, True)[0] for k in range(plan.count)])
    return crops(photos(), plan.size, plan.per_photo)


def run(plan: Plan, kept: Kept, priors: dict[str, Any], precision: Any) -> Row:
    """The row of a cell: the one that is held, or a new one."""

    def measure() -> Row:
        truth, changes = images(plan), [] if plan.sigma is None else [f"noise.sigma={plan.sigma}"]
        if plan.sampler == "classical":
            return classical(plan.task, configuration(plan.task, "dps", plan.size, changes), truth)
        config = configuration(plan.task, plan.sampler, plan.size, changes)
        name = config.sections["prior"].name
        if name not in priors:
            priors[name] = load_prior(name, precision=precision)
        return Cell(config, priors[name], truth, plan.samples).run()

    return kept.row(plan.key(), measure)


def calls_of(r: Row) -> str:
    """Forward and backward passes of the network, and decodings, of a trajectory."""
    calls = f"{r['forward']:.0f}" + (f" + {r['backward']:.0f}" if r["backward"] else "")
    return calls + (f"; {r['decode']:.0f} decodings" if r.get("decode") else "")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, one line each."""
    head = ["task", "size", "sampler", "PSNR sample", "PSNR mean", "SSIM sample", "SSIM mean", "residual", "calls", "s a sample"]
    lines = []
    for r in rows:
        cells = [r["task"], f"{r['size']} ({r['images']})" + (f", sigma {r['sigma']:g}" if "sigma" in r else "")]
        if "failed" in r:
            cells += [r["sampler"], r["failed"][:80]]
        elif r["sampler"] == "classical":
            cells += [r["method"], "", f"{r['psnr_mean']:.2f}", "", f"{r['ssim_mean']:.3f}"]
        else:
            cells += [f"{r['sampler']}, n = {r['samples']}", f"{r['psnr_sample']:.2f}", f"{r['psnr_mean']:.2f}"]
            cells += [f"{r['ssim_sample']:.3f}", f"{r['ssim_mean']:.3f}", f"{r['residual']:.2f}", calls_of(r), f"{r['seconds']:.1f}"]
        lines.append(cells + [""] * (len(head) - len(cells)))
    return lines_of(head, lines)


def best_measured(rows: Sequence[Row], plan: Plan | None) -> Row | None:
    """The row of a cell: on the planned images, if there is one, with the most samples. None if it is not planned, or failed."""
    ran = [] if plan is None else [r for r in plan.rows(rows) if "failed" not in r]
    return max(ran, key=lambda r: (r["images"] == plan.key()["images"], int(r["samples"]))) if plan is not None and ran else None


def planned_lines(rows: Sequence[Row], plans: Sequence[Plan]) -> dict[tuple[str, int, float | None], dict[str, Plan]]:
    """Sampler -> cell, of each line of a table. Raises Incomplete if a cell has no row, not even one that failed."""
    left = [plan for plan in plans if not plan.rows(rows)]
    if left:
        names = ", ".join(f"{p.sampler} on {p.task} ({p.size})" + (f" at {p.sigma:g}" if p.sigma else "") for p in left[:3])
        raise Incomplete(f"{len(left)} of {len(plans)} cells have not been measured: {names}" + (", ..." if len(left) > 3 else ""))
    lines: dict[tuple[str, int, float | None], dict[str, Plan]] = {}
    for plan in plans:
        lines.setdefault((plan.task, plan.size, plan.sigma), {})[plan.sampler] = plan
    return lines


def classical_cell(r: Row | None) -> str:
    """The method without its weight, PSNR and SSIM."""
    if r is None:
        return ""
    name = "TV" if r["method"].startswith("TV") else r["method"]
    return f"{name} {r['psnr_mean']:.2f}, {r['ssim_mean']:.2f}"


def cell(r: Row | None) -> str:
    """One sample, the mean of (n) samples and its SSIM; residual. None is a planned cell that failed."""
    if r is None:
        return "fails"
    return f"{r['psnr_sample']:.2f}, {r['psnr_mean']:.2f} ({r['samples']}), {r['ssim_mean']:.2f}; {r['residual']:.2f}"


def readme(rows: Sequence[Row]) -> str:
    """The README's table of samplers and tasks. Raises Incomplete."""
    lines = []
    for (task, size, _), plans in planned_lines(rows, readme_plan()).items():
        name = NAMES[task] + (f", {size} x {size}" if size != 64 else "")
        cells = [cell(best_measured(rows, plans[sampler])) if sampler in plans else "" for sampler in SAMPLERS]
        lines.append([name, classical_cell(best_measured(rows, plans.get("classical"))), *cells])
    return lines_of(["task", "classical", *(NAMES[sampler] for sampler in SAMPLERS)], lines)


def readme_latent(rows: Sequence[Row]) -> str:
    """The README's table of latent samplers: PSNR and SSIM of one sample; residual; below them what a sample costs. Raises Incomplete."""
    lines: list[list[str]] = []
    costs: dict[str, list[Row]] = {sampler: [] for sampler in LATENT_SAMPLERS}
    for (task, _, sigma), plans in planned_lines(rows, latent_plan()).items():
        cells = [NAMES[task], f"{sigma:g}", classical_cell(best_measured(rows, plans.get("classical")))]
        for sampler in LATENT_SAMPLERS:
            r = best_measured(rows, plans.get(sampler))
            few = "" if r is None or r["images"] >= LATENT_IMAGES else f" ({r['images']} images)"
            measured = "fails" if r is None else f"{r['psnr_sample']:.2f}, {r['ssim_sample']:.2f}; {r['residual']:.2f}{few}"
            cells.append(measured if sampler in plans else "")
            costs[sampler] += [] if r is None else [r]
        lines.append(cells)
    return lines_of(["task", "sigma", "classical", *(NAMES[sampler] for sampler in LATENT_SAMPLERS)], [*lines, *cost_lines(costs)])


def cost_lines(costs: dict[str, list[Row]]) -> list[list[str]]:
    """Network calls, decodings and seconds of a sample, lowest to highest over the tasks."""

    def range_of(rows: list[Row], name: str, digits: int) -> str:
        low, high = (f"{f(r.get(name, 0) for r in rows):.{digits}f}" for f in (min, max)) if rows else ("", "")
        return low if low == high else f"{low} to {high}"

    whats = {"forward": ("forward passes", 0), "backward": ("backward passes", 0), "decode": ("decodings", 0), "seconds": ("seconds", 1)}
    return [[text, "", "", *(range_of(rows, name, digits) for rows in costs.values())] for name, (text, digits) in whats.items()]


def main() -> None:
    every = (*TASKS, *LATENT_TASKS)
    parser = command_line(__doc__)
    parser.add_argument("--latent", action="store_true", help="the tasks and samplers of the latent prior")
    parser.add_argument(
        "--readme", action="store_true", help="the cells of the README's table (with --latent: of the latent one), as it stands there"
    )
    parser.add_argument("--tasks", nargs="+", default=None, choices=every, metavar="TASK", help=f"of {', '.join(every)}")
    parser.add_argument("--samplers", nargs="*", default=None, metavar="NAME", help="names of samplers, and classical")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="of photographs; phantoms are 128 x 128")
    parser.add_argument("--sigmas", type=float, nargs="+", default=None, help="noise levels, where not those of the presets")
    parser.add_argument("--per-photo", type=int, default=2, help="crops of each of the four photographs")
    parser.add_argument("--count", type=int, default=8, help="phantoms, or characters")
    parser.add_argument("--samples", type=int, default=4)
    precision_option(parser)
    args = parser.parse_args()
    if args.latent and "glyphs" not in shipped_priors():
        parser.exit(2, "sampler_table.py: the prior glyphs is not among the shipped ones, and --latent is about it\n")
    plans = latent_plan() if args.latent else readme_plan()
    if not args.readme:
        tasks = args.tasks or (LATENT_TASKS if args.latent else TASKS)
        samplers = args.samplers if args.samplers is not None else ["classical", *(LATENT_SAMPLERS if args.latent else SAMPLERS)]
        plans = [
            Plan(task, sampler, 0 if sampler == "classical" else args.samples, size, args.per_photo, args.count, sigma)
            for size, sigma, task, sampler in itertools.product(args.sizes, args.sigmas or [None], tasks, samplers)
        ]
    kept, priors = Kept(args.json), dict[str, Any]()
    try:
        for plan in plans:
            run(plan, kept, priors, args.precision)
    except ConfigError as error:
        parser.exit(2, f"sampler_table.py: {error}\n")
    if args.readme:
        print(readme_latent(kept.rows) if args.latent else readme(kept.rows))
    else:
        print(markdown(kept.rows))


if __name__ == "__main__":
    main()
