"""The README's table: DPS with the photo prior on the evaluation photographs, and what to hold beside it.

    python scripts/photo_table.py --json runs/t.json

zeta was chosen on training photographs, never on the evaluation ones: scripts/tune.py PRESET --grid sampler.zeta=2.5,5,7.5.

Per task: DPS (one sample, mean of the samples), total variation with the weight an oracle finds best on the very crops
(Douglas-Rachford by deepinv), and a control with the same prior and no DPS: annealing with the exact Gaussian
conditional draw at each level, which tells whether the prior or the sampler limits DPS.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from score_prior import PHOTOS, psnr
from torch import Tensor

from invsolve import Posterior, kernels, load_prior, sample
from invsolve.likelihoods import GaussianLikelihood
from invsolve.resources import resource
from invsolve.samplers import DPS
from invsolve.samplers.base import State, Stateless
from invsolve.schedules import DDPM
from operators import Blur, GaussianBlur, Inpainting, SuperResolution

SIGMA = 0.05
TASKS: dict[str, Callable[[int], Any]] = {
    "box": lambda n: Inpainting((3, n, n), kind="box", size=3 * n // 8, margin=n // 8),
    "random 70 %": lambda n: Inpainting((3, n, n), kind="random", fraction=0.7),
    "SR x4": lambda n: SuperResolution((3, n, n), factor=4, kind="bicubic"),
    "blur": lambda n: GaussianBlur((3, n, n), std=2.0, boundary="reflect"),
    "motion": lambda n: Blur((3, n, n), kernel="motion", taps=15, intensity=0.5),
}
TV_WEIGHTS = (0.001, 0.002, 0.004, 0.01, 0.03, 0.06, 0.12)
CONTROL_STEPS = 50
# The best PSNR of one sample on training photographs (scripts/tune.py) at 64 x 64 and 100 steps, among 0.3, 0.6, 1.2, 2.5, 5, 7.5,
# 10, 15. The step of DPS has the same length whatever the size of the image, so zeta grows with the side.
ZETA_64 = {"box": 2.5, "random 70 %": 5.0, "SR x4": 5.0, "blur": 7.5, "motion": 7.5}


@dataclass(frozen=True)
class ExactDraws(Stateless):
    """The control: at each level a draw of N(x0_hat, r^2 I) given y, r^2 = ratio^2/(1 + ratio^2), noised to the next."""

    def step(self, target: Any, state: State, move: Any, noise: Any) -> State:
        x0 = target.prior.denoise(state.x, move.t)
        r = move.t.ratio / math.sqrt(1 + move.t.ratio**2)
        u = target.likelihood.sample_given(x0, r, noise)
        return State(kernels.diffuse(u, move.s, noise.normal(u.shape[1:])), x0)

    def result(self, state: State) -> Tensor:
        return state.x if state.x0 is None else state.x0


def crops(paths: list[Path], size: int, per_photo: int) -> Tensor:
    """`per_photo` crops of each photograph at half resolution, on a fixed diagonal, in [-1, 1]."""
    out = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        for k in range(per_photo):
            at = (k + 1) / (per_photo + 1)
            i, j = (round(at * (n - size)) for n in pixels.shape[1:])
            out.append(pixels[:, i : i + size, j : j + size])
    return torch.stack(out)


def total_variation(operator: Any, y: Tensor, truth: Tensor) -> tuple[float, float]:
    """(PSNR, weight) of the best of a grid of weights: argmin ||y - A x||^2 / 2 + weight TV(x)."""
    import deepinv

    best = (-math.inf, 0.0)
    for weight in TV_WEIGHTS:
        prior = deepinv.optim.TVPrior(n_it_max=30, def_crit=1e-5)
        solver = deepinv.optim.DRS(data_fidelity=deepinv.optim.L2(), prior=prior, lambda_reg=weight, stepsize=1.0, max_iter=80)
        with torch.no_grad():
            found = solver(y, operator)
        best = max(best, (psnr(found, truth), weight))
    return best


def reconstruct(prior: Any, sampler: Any, operator: Any, y: Tensor, steps: int, n: int) -> tuple[Tensor, Posterior, float]:
    """(samples (B, n, ...), posterior, seconds)."""
    posterior, start = Posterior(prior, GaussianLikelihood(operator, y, SIGMA)), time.perf_counter()
    # Chunks of a gigabyte or so: on a CPU larger ones are slower.
    draws = sample(sampler, posterior, DDPM(steps=steps), n=n, ids=range(len(y)), memory_gb=1.0, progress=False)
    return draws, posterior, time.perf_counter() - start


def measure(draws: Tensor, posterior: Posterior, truth: Tensor, name: str) -> dict[str, Any]:
    """PSNR of one sample and of the mean of all, and the residual of the samples."""
    residual = torch.stack([posterior.likelihood.discrepancy(draws[:, k]) for k in range(draws.shape[1])]).mean()
    one, mean = psnr(draws[:, 0], truth), psnr(draws.clamp(-1, 1).mean(1), truth)
    return {f"{name}_sample": one, f"{name}_mean": mean, f"{name}_residual": float(residual)}


def row_of(prior: Any, task: str, truth: Tensor, steps: int, n: int, zeta: float) -> dict[str, Any]:
    """One line of the table."""
    operator = TASKS[task](truth.shape[-1])
    y = operator.measure(truth, SIGMA)
    draws, posterior, seconds = reconstruct(prior, DPS(zeta=zeta), operator, y, steps, n)
    control, _, control_s = reconstruct(prior, ExactDraws(), operator, y, CONTROL_STEPS, n)
    tv, weight = total_variation(operator, y, truth)
    row: dict[str, Any] = {"task": task, "size": truth.shape[-1], "crops": len(truth), "zeta": zeta, "steps": steps}
    row |= measure(draws, posterior, truth, "dps") | measure(control, posterior, truth, "control")
    row |= {"tv": tv, "tv_weight": weight, "seconds": seconds / len(truth) / n, "control_seconds": control_s / len(truth) / n}
    print({k: round(v, 2) if isinstance(v, float) and k != "tv_weight" else v for k, v in row.items()}, flush=True)
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = "| task | size | crops | zeta | DPS sample | DPS mean of 8 | residual | s a sample | control mean of 8 | TV (oracle) |"
    lines = [head, "| --- " * 10 + "|"]
    for r in rows:
        lines.append(
            f"| {r['task']} | {r['size']} | {r['crops']} | {r['zeta']:g} | {r['dps_sample']:.2f} | {r['dps_mean']:.2f} "
            f"| {r['dps_residual']:.2f} | {r['seconds']:.1f} | {r['control_mean']:.2f} | {r['tv']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="photo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--per-photo", type=int, default=2, help="crops of each of the four photographs")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    prior = load_prior(args.prior, precision=args.precision)
    rows = []
    for size in args.sizes:
        truth = crops([resource("data", "photos", name) for name in PHOTOS], size, args.per_photo)
        for task in TASKS:
            rows.append(row_of(prior, task, truth, args.steps, args.samples, ZETA_64[task] * size / 64))
            if args.json is not None:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(rows, indent=1))
    print(markdown(rows))


if __name__ == "__main__":
    main()
