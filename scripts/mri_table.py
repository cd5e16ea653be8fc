"""The MRI table: diffusion sampling with the phantom prior on phantoms that it has not seen, beside the classical methods.

    python scripts/mri_table.py --json runs/mri.json     # measure, and print the table in Markdown; run again to continue
    python scripts/mri_table.py --sampler dps --sweep    # choose a setting on other phantoms (never on the evaluated ones)

Per task: zero-filled, SENSE (conjugate gradients, Tikhonov) and joint total variation with the weights that an oracle finds
best on the very phantoms, and DAPS or DPS (one sample, mean of the samples). PSNR in dB is that of magnitudes clipped to [0, 1],
data range 1, averaged over phantoms. Noise is Gaussian, of standard deviation 0.02 in the real and in the imaginary part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tables_common import Kept, Row, bold_best, command_line, markdown, needed, oracle, precision_option
from torch import Tensor

from invsolve import Posterior, load_prior, sample
from invsolve.data.items import EVALUATION_SEED
from invsolve.data.phantoms import phantoms
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.pictures.panels import Shown, save_panel
from invsolve.samplers import DAPS, DPS
from invsolve.schedules import DDPM, Karras
from operators import MRI, MultiCoilMRI
from operators.mri.baselines import sense, total_variation, zero_filled

SIGMA = 0.02
SWEEP_SEED = EVALUATION_SEED + 1
TASKS: dict[str, Callable[[int], Any]] = {
    "single coil x4, Gaussian lines": lambda n: MRI((2, n, n), kind="gaussian", acceleration=4, centre_fraction=0.08),
    "single coil x4, equispaced": lambda n: MRI((2, n, n), kind="equispaced", acceleration=4, centre_fraction=0.08),
    "single coil x8, Poisson disc": lambda n: MRI((2, n, n), kind="poisson", acceleration=8, centre_fraction=0.04),
    "8 coils x8, equispaced": lambda n: MultiCoilMRI((2, n, n), kind="equispaced", acceleration=8, centre_fraction=0.04, n_coils=8),
}
TV_WEIGHTS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.024, 0.032, 0.064)
SENSE_WEIGHTS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Mean over images (B, 2, H, W) of the PSNR in dB of their magnitudes, clipped to [0, 1]."""
    a, b = (torch.linalg.vector_norm(t, dim=1).clamp(max=1) for t in (x, truth))
    return float((-10 * (a - b).square().flatten(1).mean(1).log10()).mean())


# Per sampler: how its one setting is named, the value that was best on other phantoms, the grid of --sweep, and how it runs.
SAMPLERS: dict[str, tuple[str, float, tuple[float, ...], Callable[[float, int], tuple[Any, Any]]]] = {
    "daps": ("prior_std", 0.05, (0.02, 0.05, 0.15), lambda v, n: (DAPS(prior_std=v), Karras(steps=n, sigma_max=3.0, sigma_min=0.02))),
    "dps": ("zeta", 4.0, (2.0, 4.0, 8.0, 12.0), lambda v, n: (DPS(zeta=v), DDPM(steps=n))),
}


def draw(prior: Any, operator: Any, y: Tensor, name: str, value: float, steps: int, n: int) -> tuple[Tensor, float, float]:
    """(samples (B, n, 2, H, W), their mean residual, seconds a sample)."""
    posterior, start = Posterior(prior, GaussianLikelihood(operator, y, SIGMA)), time.perf_counter()
    sampler, schedule = SAMPLERS[name][3](value, steps)
    draws = sample(sampler, posterior, schedule, n=n, ids=range(len(y)), memory_gb=1.0, progress=False)
    seconds = (time.perf_counter() - start) / len(y) / n
    residual = torch.stack([posterior.likelihood.discrepancy(draws[:, k]) for k in range(n)]).mean()
    return draws, float(residual), seconds


def sweep(prior: Any, args: argparse.Namespace) -> None:
    truth = phantoms(SWEEP_SEED, range(args.phantoms), args.size)
    for task in args.tasks:
        operator = TASKS[task](args.size)
        y = operator.measure(truth, SIGMA)
        for value in SAMPLERS[args.sampler][2]:
            draws, residual, _ = draw(prior, operator, y, args.sampler, value, args.steps, args.samples)
            found = f"sample {psnr(draws[:, 0], truth):.2f}, mean {psnr(draws.mean(1), truth):.2f} dB, residual {residual:.2f}"
            print(f"{task}: {SAMPLERS[args.sampler][0]} {value:g}, steps {args.steps}: {found}", flush=True)


def key_of(args: argparse.Namespace, task: str) -> Row:
    """What tells one line from the others."""
    key: Row = {"task": task, "phantoms": args.phantoms, "size": args.size, "sampler": None if args.prior == "none" else args.sampler}
    if args.prior != "none":
        setting, best = SAMPLERS[args.sampler][:2]
        key |= {setting: best if args.value is None else args.value, "steps": args.steps, "samples": args.samples}
        key |= {"prior": args.prior, "precision": args.precision}
    return key


def row_of(prior: Any, key: Row, truth: Tensor, panels: Path | None) -> Row:
    """The figures of one line of the table."""
    operator = TASKS[key["task"]](key["size"])
    y = operator.measure(truth, SIGMA)
    tv, tv_weight, _ = oracle(((weight, total_variation(operator, y, weight)) for weight in TV_WEIGHTS), lambda x: psnr(x, truth))
    tikhonov, sense_weight, _ = oracle(((weight, sense(operator, y, weight)) for weight in SENSE_WEIGHTS), lambda x: psnr(x, truth))
    row: Row = {"zero_filled": psnr(zero_filled(operator, y), truth)}
    row |= {"sense": tikhonov, "sense_weight": sense_weight, "tv": tv, "tv_weight": tv_weight}
    if prior is not None:
        name, n = key["sampler"], key["samples"]
        draws, residual, seconds = draw(prior, operator, y, name, key[SAMPLERS[name][0]], key["steps"], n)
        mean = draws.mean(1)
        row |= {"seconds": seconds, "sample": psnr(draws[:, 0], truth), "mean": psnr(mean, truth), "residual": residual}
        if panels is not None:
            panels.mkdir(parents=True, exist_ok=True)
            view, std = operator.view(y), draws.std(1)
            for b in range(min(4, len(truth))):
                title = f"{key['task']}, phantom {b}"
                shown = Shown(title, *(t[b].numpy() for t in (view, truth, draws[:, 0], mean, std)), n, {"view": "zero-filled"})
                save_panel(shown, panels / f"{title.replace(' ', '_').replace(',', '')}.png")
    return row


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; the task is a column if there are several."""
    several = len({r["task"] for r in rows}) > 1
    head, lines = ["zero-filled", "SENSE", "total variation"], []
    if rows[0]["sampler"] is not None:
        name = rows[0]["sampler"].upper()
        head += [f"{name}, one sample", f"{name}, mean of {rows[0]['samples']}", "residual / noise"]
    for r in rows:
        cells = bold_best([r[key] for key in ("zero_filled", "sense", "tv", "sample", "mean") if key in r])
        cells += [f"{r['residual']:.2f}"] if "residual" in r else []
        lines.append([r["task"], *cells] if several else cells)
    return markdown(["task", *head] if several else head, lines)


def readme(rows: Sequence[Row]) -> str:
    """The README's table, what the defaults measure. Raises Incomplete."""
    return table([needed(rows, key_of(options().parse_args([]), task)) for task in list(TASKS)[:1]])


def options() -> argparse.ArgumentParser:
    parser = command_line(__doc__)
    parser.add_argument("--prior", default="phantom", help='a shipped prior, a folder, or "none" for the classical methods alone')
    parser.add_argument("--tasks", nargs="+", default=list(TASKS)[:1], choices=list(TASKS), metavar="TASK", help=f"of {list(TASKS)}")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--sampler", default="daps", choices=list(SAMPLERS))
    parser.add_argument("--value", type=float, default=None, help="of the sampler's setting: prior_std of DAPS, zeta of DPS")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--phantoms", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    precision_option(parser)
    parser.add_argument("--panels", type=Path, default=None, help="folder for a panel of the first four phantoms of each task")
    return parser


def main() -> None:
    args = options().parse_args()
    prior = None if args.prior == "none" else load_prior(args.prior, precision=args.precision)
    if args.sweep:
        sweep(prior, args)
        return
    truth, kept, rows = phantoms(EVALUATION_SEED, range(args.phantoms), args.size), Kept(args.json), []
    for task in args.tasks:
        key = key_of(args, task)
        rows.append(kept.row(key, lambda key=key: row_of(prior, key, truth, args.panels)))
    print(table(rows))


if __name__ == "__main__":
    main()
