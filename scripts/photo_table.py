"""The README's table of DPS with the photo prior on the evaluation photographs, and what to hold beside it.

    python scripts/photo_table.py --per-photo 4 --json runs/photo.json                # run again to continue
    python scripts/photo_table.py --sizes 128 --per-photo 1 --json runs/photo.json    # both together are the README's

zeta was chosen on training photographs, never on the evaluation ones: scripts/tune.py PRESET --grid sampler.zeta=2.5,5,7.5.

Per task: DPS (one sample, mean of the samples), total variation with the weight an oracle finds best on the very crops
(Douglas-Rachford by deepinv), and with --control one with the same prior and no DPS: annealing with the exact Gaussian
conditional draw at each level, which tells whether the prior or the sampler limits DPS.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tables_common import (
    Kept,
    Row,
    bold_best,
    command_line,
    crops,
    markdown,
    needed,
    oracle,
    photos,
    precision_option,
    psnr,
    total_variations,
)
from torch import Tensor

from invsolve import Posterior, load_prior, sample
from invsolve.engine.protocol import State, Stateless
from invsolve.kernels import reverse
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.samplers import DPS
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
README_TASKS = ("box", "random 70 %", "SR x4", "blur")
README_CROPS = {64: 4, 128: 1}  # side -> crops of each photograph
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
        return State(reverse.diffuse(u, move.s, noise.normal(u.shape[1:])), x0)

    def result(self, state: State) -> Tensor:
        return state.x if state.x0 is None else state.x0


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


def row_of(prior: Any, key: Row, truth: Tensor, control: bool) -> Row:
    """The figures of one line of the table."""
    operator, n = TASKS[key["task"]](truth.shape[-1]), key["samples"]
    y = operator.measure(truth, SIGMA)
    draws, posterior, seconds = reconstruct(prior, DPS(zeta=key["zeta"]), operator, y, key["steps"], n)
    row = measure(draws, posterior, truth, "dps") | {"seconds": seconds / len(truth) / n}
    if control:
        draws, _, seconds = reconstruct(prior, ExactDraws(), operator, y, CONTROL_STEPS, n)
        row |= measure(draws, posterior, truth, "control") | {"control_seconds": seconds / len(truth) / n}
    tv, weight, _ = oracle(total_variations(operator, y), lambda x: psnr(x, truth))
    return row | {"tv": tv, "tv_weight": weight}


def key_of(task: str, size: int, per_photo: int, steps: int = 100, n: int = 8, prior: str = "photo", precision: str = "bf16") -> Row:
    """What tells one line from the others."""
    key: Row = {"task": task, "size": size, "crops": per_photo * len(photos()), "zeta": ZETA_64[task] * size / 64}
    return key | {"steps": steps, "samples": n, "prior": prior, "precision": precision}


def title(task: str, size: int) -> str:
    """A task in words."""
    box = 3 * size // 8
    words = {"box": f"box of {box} x {box} missing", "random 70 %": "70 % of the pixels missing", "SR x4": "super-resolution x4 (bicubic)"}
    return words.get(task, {"blur": "Gaussian blur of 2 pixels", "motion": "motion blur over 15 pixels"}.get(task, task))


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; the control, where there is one, as a last column."""
    control = any("control_mean" in r for r in rows)
    (n,) = {r["samples"] for r in rows}
    head = ["task", "size", "zeta", "DPS, one sample", f"DPS, mean of {n}", "residual / noise", "total variation"]
    lines = []
    for r in rows:
        one, mean, tv = bold_best([r["dps_sample"], r["dps_mean"], r["tv"]])
        cells = [title(r["task"], r["size"]), str(r["size"]), f"{r['zeta']:g}", one, mean, f"{r['dps_residual']:.2f}", tv]
        lines.append([*cells, f"{r['control_mean']:.2f}" if "control_mean" in r else ""] if control else cells)
    return markdown([*head, f"control, mean of {n}"] if control else head, lines)


def readme(rows: Sequence[Row]) -> str:
    """The README's table. Raises Incomplete."""
    wanted = [needed(rows, key_of(task, size, each)) for size, each in README_CROPS.items() for task in README_TASKS]
    return table([{name: value for name, value in row.items() if not name.startswith("control")} for row in wanted])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--prior", default="photo")
    parser.add_argument("--tasks", nargs="+", default=list(README_TASKS), choices=list(TASKS), metavar="TASK", help=f"of {list(TASKS)}")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    precision_option(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--per-photo", type=int, default=4, help="crops of each of the four photographs")
    parser.add_argument("--control", action="store_true", help="also anneal with exact conditional draws")
    args = parser.parse_args()
    prior, kept, rows = load_prior(args.prior, precision=args.precision), Kept(args.json), []
    for size in args.sizes:
        truth = crops(photos(), size, args.per_photo)
        for task in args.tasks:
            key = key_of(task, size, args.per_photo, args.steps, args.samples, args.prior, args.precision)
            rows.append(kept.row(key, lambda key=key, truth=truth: row_of(prior, key, truth, args.control)))
    print(table(rows))


if __name__ == "__main__":
    main()
