"""How fast a reconstruction can be: the README's speed figures.

    python scripts/speed_table.py --json runs/speed.json     # run again to continue

Two tables, on crops of the evaluation photographs at 64 x 64 with the photo prior, noise 0.05. First, per task, DPS with 1000
steps, and the fastest of a ladder of settings (DAPS with the exact inner draw at more and more levels, DPS with fewer
steps) whose samples reach its PSNR. Second, DAPS with the exact inner draw against DAPS with 100 Langevin steps in
its place, both at 50 levels, in turn, the median of the ratios of the rounds. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from photo_table import SIGMA, TASKS, ZETA_64
from tables_common import Kept, Row, command_line, crops, markdown, needed, photos, psnr
from torch import Tensor

from invsolve import Posterior, load_prior, sample
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.samplers import DAPS, DPS
from invsolve.schedules import DDPM, Karras

LADDER = (5, 7, 10, 15, 20, 30, 50, 100)
FEWER = (20, 30, 50, 100)
PRIOR_STD = 0.15
# At 1000 steps the better of 0.5 and 1 for one sample on two training photographs (scripts/tune.py), for random pixels and SR.
ZETA_1000 = {"box": 0.5, "random 70 %": 0.5, "SR x4": 0.5, "blur": 0.5, "motion": 0.5}
NAMES = {
    "box": "box missing",
    "random 70 %": "70 % of the pixels missing",
    "SR x4": "super-resolution x4",
    "blur": "Gaussian blur",
    "motion": "motion blur",
}
README_CROPS = 1  # of each photograph


def daps(levels: int, inner: str = "auto") -> tuple[Any, Any]:
    return DAPS(prior_std=PRIOR_STD, inner=inner), Karras(levels, 10.0, 0.02)  # type: ignore[arg-type]


def dps(steps: int, zeta: float) -> tuple[Any, Any]:
    return DPS(zeta=zeta), DDPM(steps=steps)


def timed(posterior: Posterior, truth: Tensor, pair: tuple[Any, Any], seed: int = 0) -> tuple[float, float]:
    """(PSNR of one sample, averaged over images; seconds an image)."""
    start = time.perf_counter()
    drawn = sample(pair[0], posterior, pair[1], ids=range(len(truth)), seed=seed, progress=False)
    return psnr(drawn[:, 0], truth), (time.perf_counter() - start) / len(truth)


def race(prior: Any, task: str, truth: Tensor) -> Row:
    """DPS with 1000 steps, the ladder, and the fastest rung that reaches it."""
    operator = TASKS[task](truth.shape[-1])
    posterior = Posterior(prior, GaussianLikelihood(operator, operator.measure(truth, SIGMA), SIGMA))
    goal, seconds = timed(posterior, truth, dps(1000, ZETA_1000[task]))
    row: Row = {"dps_1000": goal, "dps_1000_s": seconds}
    rungs = {f"DAPS, {k} levels": daps(k) for k in LADDER}
    # A step of DPS has the same length whatever the number of steps, so fewer want longer ones.
    rungs |= {f"DPS, {k} steps": dps(k, ZETA_64[task] * 100 / k) for k in FEWER}
    row["rungs"] = {name: timed(posterior, truth, pair) for name, pair in rungs.items()}
    reached = [(s, name, value) for name, (value, s) in row["rungs"].items() if value >= goal]
    if reached:
        s, name, value = min(reached)
        row |= {"fastest": name, "psnr": value, "seconds": s, "ratio": seconds / s}
    return row


def exact_against_langevin(prior: Any, task: str, truth: Tensor, rounds: int) -> Row:
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
    row: Row = {"ratio": ratio}
    for name, kept in found.items():
        row |= {f"{name}_psnr": statistics.mean(p for p, _ in kept), f"{name}_s": statistics.median(s for _, s in kept)}
    return row


def key_of(task: str, per_photo: int) -> Row:
    """What tells a line of the first table from the others."""
    return {"table": "races", "task": task, "images": per_photo * len(photos())}


def races(rows: Sequence[Row]) -> str:
    """The first table."""
    lines = []
    for r in rows:
        best = max(r["rungs"], key=lambda name: r["rungs"][name][0])
        reached = [f"none tried ({best}: {r['rungs'][best][0]:.2f})", "", ""]
        if "fastest" in r:
            reached = [r["fastest"], f"{r['psnr']:.2f}", f"1/{r['ratio']:.0f}"]
        lines.append([NAMES[r["task"]], f"{r['dps_1000']:.2f}", *reached])
    return markdown(["task", "DPS, 1000 steps", "fastest that reaches it", "PSNR", "time"], lines)


def inner(rows: Sequence[Row]) -> str:
    """The second table."""
    lines = [[NAMES[r["task"]], f"{r['exact_psnr']:.2f}", f"{r['langevin_psnr']:.2f}", f"{r['ratio']:.2f}"] for r in rows]
    return markdown(["task", "exact PSNR", "Langevin-100 PSNR", "time, exact / Langevin"], lines)


def readme(rows: Sequence[Row]) -> str:
    """The README's table, the first. Raises Incomplete."""
    return races([needed(rows, key_of(task, README_CROPS)) for task in ZETA_1000])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(ZETA_1000), choices=list(ZETA_1000), metavar="TASK")
    parser.add_argument("--per-photo", type=int, default=README_CROPS, help="crops of each of the four photographs, for the first table")
    parser.add_argument("--rounds", type=int, default=4, help="of the second table; 0 leaves it out")
    args = parser.parse_args()
    prior, kept = load_prior("photo", precision="bf16"), Kept(args.json)
    raced, compared = [], []
    for task in args.tasks:
        raced.append(kept.row(key_of(task, args.per_photo), lambda task=task: race(prior, task, crops(photos(), 64, args.per_photo))))
    for task in ("blur", "motion") if args.rounds else ():
        key = {"table": "inner", "task": task, "rounds": args.rounds, "batch": len(photos())}
        compared.append(kept.row(key, lambda task=task: exact_against_langevin(prior, task, crops(photos(), 64, 1), args.rounds)))
    print("\n\n".join([races(raced)] * bool(raced) + [inner(compared)] * bool(compared)))


if __name__ == "__main__":
    main()
