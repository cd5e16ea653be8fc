"""How fast a reconstruction can be: the README's speed figures.

    python scripts/speed_table.py --json runs/speed.json

Two tables, on crops of the evaluation photographs at 64 x 64 with the photo prior, noise 0.05. First, per task, DPS with 1000
steps, and the fastest of a ladder of settings (DAPS with the exact inner draw at more and more levels, DPS with fewer
steps) whose samples reach its PSNR. Second, DAPS with the exact inner draw against DAPS with 100 Langevin steps in
its place, both at 50 levels, in turn, the median of the ratios of the rounds. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from photo_table import SIGMA, TASKS, ZETA_64, crops
from score_prior import PHOTOS, psnr
from torch import Tensor

from invsolve import Posterior, load_prior, sample
from invsolve.likelihoods import GaussianLikelihood
from invsolve.resources import resource
from invsolve.samplers import DAPS, DPS
from invsolve.schedules import DDPM, Karras

LADDER = (5, 7, 10, 15, 20, 30, 50, 100)
FEWER = (20, 30, 50, 100)
PRIOR_STD = 0.15
# At 1000 steps the better of 0.5 and 1 for one sample on two training photographs (scripts/tune.py), for random pixels and SR.
ZETA_1000 = {"box": 0.5, "random 70 %": 0.5, "SR x4": 0.5, "blur": 0.5, "motion": 0.5}


def daps(levels: int, inner: str = "auto") -> tuple[Any, Any]:
    return DAPS(prior_std=PRIOR_STD, inner=inner), Karras(levels, 10.0, 0.02)  # type: ignore[arg-type]


def dps(steps: int, zeta: float) -> tuple[Any, Any]:
    return DPS(zeta=zeta), DDPM(steps=steps)


def timed(posterior: Posterior, truth: Tensor, pair: tuple[Any, Any], seed: int = 0) -> tuple[float, float]:
    """(PSNR of one sample, averaged over images; seconds an image)."""
    start = time.perf_counter()
    drawn = sample(pair[0], posterior, pair[1], ids=range(len(truth)), seed=seed, progress=False)
    return psnr(drawn[:, 0], truth), (time.perf_counter() - start) / len(truth)


def race(prior: Any, task: str, truth: Tensor) -> dict[str, Any]:
    """DPS with 1000 steps, the ladder, and the fastest rung that reaches it."""
    operator = TASKS[task](truth.shape[-1])
    posterior = Posterior(prior, GaussianLikelihood(operator, operator.measure(truth, SIGMA), SIGMA))
    goal, seconds = timed(posterior, truth, dps(1000, ZETA_1000[task]))
    row: dict[str, Any] = {"task": task, "images": len(truth), "dps_1000": goal, "dps_1000_s": seconds}
    rungs = {f"DAPS, {k} levels": daps(k) for k in LADDER}
    # A step of DPS has the same length whatever the number of steps, so fewer want longer ones.
    rungs |= {f"DPS, {k} steps": dps(k, ZETA_64[task] * 100 / k) for k in FEWER}
    row["rungs"] = {name: timed(posterior, truth, pair) for name, pair in rungs.items()}
    reached = [(s, name, value) for name, (value, s) in row["rungs"].items() if value >= goal]
    if reached:
        s, name, value = min(reached)
        row |= {"fastest": name, "psnr": value, "seconds": s, "ratio": seconds / s}
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def exact_against_langevin(prior: Any, task: str, truth: Tensor, rounds: int) -> dict[str, Any]:
    """Times in turn, so that what else the machine does meets both alike; the first round warms up."""
    operator = TASKS[task](truth.shape[-1])
    posterior = Posterior(prior, GaussianLikelihood(operator, operator.measure(truth, SIGMA), SIGMA))
    found: dict[str, list[tuple[float, float]]] = {"exact": [], "langevin": []}
    for k in range(rounds + 1):
        for name, kept in found.items():
            result = timed(posterior, truth, daps(50, name), seed=k)
            if k:
                kept.append(result)
    ratio = statistics.median(a[1] / b[1] for a, b in zip(found["exact"], found["langevin"], strict=True))
    row: dict[str, Any] = {"task": task, "batch": len(truth), "ratio": ratio}
    for name, kept in found.items():
        row |= {f"{name}_psnr": statistics.mean(p for p, _ in kept), f"{name}_s": statistics.median(s for _, s in kept)}
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def markdown(races: list[dict[str, Any]], inner: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = ["| task | DPS, 1000 steps | s an image | fastest that reaches it | PSNR | s an image | ratio |", "| --- " * 7 + "|"]
    for r in races:
        best = (
            f"{r['fastest']} | {r['psnr']:.2f} | {r['seconds']:.2f} | 1/{r['ratio']:.0f}" if "fastest" in r else "none of the ladder | | |"
        )
        lines.append(f"| {r['task']} | {r['dps_1000']:.2f} | {r['dps_1000_s']:.1f} | {best} |")
    lines += ["", "| task | exact PSNR | Langevin-100 PSNR | time, exact / Langevin |", "| --- " * 4 + "|"]
    lines += [f"| {r['task']} | {r['exact_psnr']:.2f} | {r['langevin_psnr']:.2f} | {r['ratio']:.2f} |" for r in inner]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(ZETA_1000), choices=list(ZETA_1000), metavar="TASK")
    parser.add_argument("--per-photo", type=int, default=2, help="crops of each of the four photographs, for the first table")
    parser.add_argument("--rounds", type=int, default=4, help="of the second table")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    prior = load_prior("photo", precision="bf16")
    photos = [resource("data", "photos", name) for name in PHOTOS]
    inner = [exact_against_langevin(prior, task, crops(photos, 64, 1), args.rounds) for task in ("blur", "motion")]
    races = [race(prior, task, crops(photos, 64, args.per_photo)) for task in args.tasks]
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"races": races, "inner": inner}, indent=1))
    print(markdown(races, inner))


if __name__ == "__main__":
    main()
