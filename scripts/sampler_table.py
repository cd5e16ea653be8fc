"""The README's table of samplers and tasks: every sampler with its preset, on images that no setting was chosen on.

    python scripts/sampler_table.py --sizes 64 --json runs/table.json                 # run again to continue
    python scripts/sampler_table.py --tasks photo_sr4 --samplers daps dps --samples 8

A cell is what `invsolve run TASK sampler=NAME` does: PSNR in dB and SSIM of one sample and of the mean of the samples (of PnP-ULA
the mean of its chains), residual of the samples in units of the noise, seconds and network calls of a sample. Beside each
task stands a classical method whose weight an oracle chose on the very images: total variation, SENSE with total variation
for MRI, hybrid input-output (free of weights, 16 restarts) for phase retrieval, and the measurement itself for clipped images.

Photographs are crops of the evaluation photographs at half resolution, phantoms of the evaluation stream. DPS and MCG take a
step of the same length whatever the size of the image; their presets are for 64 x 64 and scaled with the side here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mri_table import TV_WEIGHTS as MRI_TV_WEIGHTS
from photo_table import TV_WEIGHTS, crops
from score_prior import PHOTOS, psnr
from torch import Tensor
from tune import Row, Trial

from invsolve import load_prior, panels
from invsolve.config import Config, load
from invsolve.phantoms import EVALUATION_SEED, phantoms
from invsolve.resources import resource
from operators import mri_baselines
from operators.phase_baselines import hybrid_input_output

TASKS = ("photo_inpaint", "photo_random", "photo_sr4", "photo_deblur", "photo_motion", "photo_hdr", "phase_retrieval", "mri_phantom")
SAMPLERS = ("dps", "mcg", "daps", "pnp_ula")
MRI_SIZE, HIO_RESTARTS = 128, 16
GUIDANCE = {"dps": "zeta", "mcg": "weight"}


def magnitudes(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as they are shown and scored: photographs as they are, complex phantoms as magnitudes; in [-1, 1]."""
    return torch.stack([panels.as_shown(image) for image in x])


def ssim(x: Tensor, truth: Tensor) -> float:
    """torchmetrics' SSIM, averaged over images, both brought from [-1, 1] to [0, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = ((t.clamp(-1, 1) + 1) / 2 for t in (magnitudes(x), magnitudes(truth)))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))


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
    import deepinv

    operator, y = measured(config, truth)
    start = time.perf_counter()
    found: list[tuple[str, Tensor]] = []
    if task == "phase_retrieval":
        found = [("HIO", operator.align(hybrid_input_output(operator, y, restarts=HIO_RESTARTS), truth))]
    elif task == "mri_phantom":
        found = [(f"TV {w:g}", mri_baselines.total_variation(operator, y, w)) for w in MRI_TV_WEIGHTS]
    elif not operator.linear:
        found = [("y / scale", y / operator.scale)]
    else:
        for weight in TV_WEIGHTS:
            prior = deepinv.optim.TVPrior(n_it_max=30, def_crit=1e-5)
            solver = deepinv.optim.DRS(data_fidelity=deepinv.optim.L2(), prior=prior, lambda_reg=weight, stepsize=1.0, max_iter=80)
            with torch.no_grad():
                found.append((f"TV {weight:g}", solver(y, operator)))
    value, name, best = max(((psnr(magnitudes(x), magnitudes(truth)), name, x) for name, x in found), key=lambda one: one[0])
    return {"method": name, "psnr_mean": value, "ssim_mean": ssim(best, truth), "seconds": (time.perf_counter() - start) / len(truth)}


def images(task: str, size: int, per_photo: int, count: int) -> Tensor:
    """What a task is measured on."""
    if task == "mri_phantom":
        return phantoms(EVALUATION_SEED, range(count), MRI_SIZE)
    return crops([resource("data", "photos", name) for name in PHOTOS], size, per_photo)


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table, tasks in order."""
    head = "| task | size | sampler | PSNR sample | PSNR mean | SSIM sample | SSIM mean | residual | calls | s a sample |"
    lines = [head, "| --- " * 10 + "|"]
    for r in rows:
        size = f"{r['size']} ({r['images']})" + (f", sigma {r['sigma']:g}" if "sigma" in r else "")
        if "failed" in r:
            lines.append(f"| {r['task']} | {size} | {r['sampler']} | {r['failed'][:80]} | | | | | | |")
        elif r["sampler"] == "classical":
            lines.append(f"| {r['task']} | {size} | {r['method']} | | {r['psnr_mean']:.2f} | | {r['ssim_mean']:.3f} | | | |")
        else:
            calls = f"{r['forward']:.0f}" + (f" + {r['backward']:.0f}" if r["backward"] else "")
            calls += f"; {r['decode']:.0f} decodings" if r.get("decode") else ""
            lines.append(
                f"| {r['task']} | {size} | {r['sampler']}, n = {r['samples']} | {r['psnr_sample']:.2f} | {r['psnr_mean']:.2f} "
                f"| {r['ssim_sample']:.3f} | {r['ssim_mean']:.3f} | {r['residual']:.2f} | {calls} | {r['seconds']:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--samplers", nargs="*", default=["classical", *SAMPLERS], metavar="NAME", help="names of samplers, and classical")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="of photographs; phantoms are 128 x 128")
    parser.add_argument("--sigmas", type=float, nargs="+", default=None, help="noise levels, where not those of the presets")
    parser.add_argument("--per-photo", type=int, default=2, help="crops of each of the four photographs")
    parser.add_argument("--count", type=int, default=8, help="phantoms")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    parser.add_argument("--json", type=Path, default=None, help="rows are kept here, and those that it holds are not run again")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.json.read_text()) if args.json is not None and args.json.is_file() else []
    priors: dict[str, Any] = {}
    for size, sigma, task, sampler in itertools.product(args.sizes, args.sigmas or [None], args.tasks, args.samplers):
        truth = images(task, size, args.per_photo, args.count)
        n = 0 if sampler == "classical" else args.samples
        key: Row = {"task": task, "size": truth.shape[-1], "sampler": sampler, "images": len(truth), "samples": n}
        key |= {} if sigma is None else {"sigma": sigma}
        if any(all(row.get(k) == v for k, v in key.items()) for row in rows):
            continue
        changes = [] if sigma is None else [f"noise.sigma={sigma}"]
        config = configuration(task, "dps" if sampler == "classical" else sampler, size, changes)
        if sampler == "classical":
            found = classical(task, config, truth)
        else:
            name = config.sections["prior"].name
            priors.setdefault(name, load_prior(name, precision=args.precision))
            found = Cell(config, priors[name], truth, n).run()
        rows.append(key | found)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(rows, indent=1))
    print(markdown(rows))


if __name__ == "__main__":
    main()
