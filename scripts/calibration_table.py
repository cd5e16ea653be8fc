"""The README's table of calibration: every sampler against posteriors of images that are known, as `invsolve calibrate` does it.

    python scripts/calibration_table.py --json runs/calibration.json     # all rows, about ten minutes; run again to continue
    python scripts/calibration_table.py --rows DPS --images 32 --draws 9
    python scripts/calibration_table.py --operator gaussian_blur

Images of 8 x 8 under a Gaussian prior and under one of two modes; half of the sides missing in a box unless --operator names
another, noise of sigma 0.1. A row is a line of ROWS:

- mean: how far the mean of the draws is from the exact one, in exact standard deviations, where y measures and where it does not;
- std: standard deviation of the draws over the exact one, and in brackets that of the direction in which it is least and most;
- modes: root mean square error of the weights of the two modes;
- distance: sliced Wasserstein distance to exact draws over that between exact draws;
- 90 %: the share of the truths in the 90 % intervals of the pixels;
- ranks: the smallest p-value of the ranks of some numbers and of TARP, times how many there are.

Bold is what neither the tolerance of 10 % nor chance explains. All but the modes are of the Gaussian prior.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tables_common import Kept, command_line, markdown, needed
from tables_common import Row as Result

from invsolve.diagnostics.calibrate import Calibration, Draw, calibrate, sampler_draws
from invsolve.diagnostics.problems import gaussian_noise_likelihood, image_problem
from invsolve.samplers import DAPS, DPS, MCG, PSLD, PnPULA, ReSample, Unconditional
from invsolve.schedules import DDPM, Karras
from operators import OPERATORS

SHAPE, SIGMA = (1, 8, 8), 0.1
KARRAS = Karras(steps=50, sigma_max=10.0, sigma_min=0.02)


@dataclass(frozen=True)
class Row:
    """A sampler and how it walks; without one, exact draws."""

    label: str
    sampler: Any = None
    schedule: Any = None

    def draw(self) -> Draw:
        if self.sampler is not None:
            return sampler_draws(self.sampler, self.schedule)
        return lambda posterior, n, seed: posterior.exact().draw(n, seed).reshape(len(posterior.likelihood.y), n, *SHAPE)


ROWS = [
    Row("exact draws"),
    Row("`DPS()`, DDPM 100", DPS(), DDPM(steps=100)),
    Row("`DPS()`, DDPM 1000", DPS(), DDPM(steps=1000)),
    Row('`DPS(variant="squared")`, DDPM 1000', DPS(variant="squared"), DDPM(steps=1000)),
    Row("`MCG(weight=0)`, DDPM 100", MCG(weight=0), DDPM(steps=100)),
    Row("`DAPS()`, Karras 50", DAPS(), KARRAS),
    Row('`DAPS(estimate="ode")`, Karras 50', DAPS(estimate="ode"), KARRAS),
    Row('`DAPS(inner="langevin", inner_steps=20)`, Karras 50', DAPS(inner="langevin", inner_steps=20), KARRAS),
    Row("`PnPULA()`, DDPM 100", PnPULA(), DDPM(steps=100)),
    Row('`PnPULA(kernel="skrock", steps=200)`, DDPM 100', PnPULA(kernel="skrock", steps=200), DDPM(steps=100)),
    Row("`PSLD()`, DDPM 100", PSLD(), DDPM(steps=100)),
    Row("`ReSample()`, DDPM 100", ReSample(), DDPM(steps=100)),
    Row("`Unconditional()`, DDPM 1000, which ignores y", Unconditional(), DDPM(steps=1000)),
]

HEAD = ("sampler", "mean, measured", "mean, open", "std, measured", "std, open", "modes", "distance", "90 %", "ranks", "calibrated")
DEFAULTS = {"operator": "inpainting", "images": 128, "draws": 39}


def shown(text: str, off: bool) -> str:
    return f"**{text}**" if off else text


def spread(found: Calibration, key: str) -> str:
    """The standard deviation, and its range over directions."""
    if not any(f.key == f"spread_{key}" for f in found.findings):
        return "none"
    mean, low, high = (found[f"{what}_{key}"] for what in ("spread", "lowest", "highest"))
    return shown(f"{mean.value:.2f} ({math.sqrt(low.value):.2f} to {math.sqrt(high.value):.2f})", mean.off or low.off or high.off)


def cells_of(label: str, gaussian: Calibration, mixture: Calibration) -> list[str]:
    """A row of the table."""

    def cell(found: Calibration, key: str) -> str:
        one = [f for f in found.findings if f.key == key]
        return shown(f"{one[0].value:.2f}", one[0].off) if one else "none"

    p = {f.key: f for f in gaussian.findings if f.p is not None}
    least = min(1.0, len(p) * min(f.p for f in p.values() if f.p is not None))
    covered = gaussian["coverage_pixels_1"]
    cells = [label, cell(gaussian, "mean_measured"), cell(gaussian, "mean_open"), spread(gaussian, "measured"), spread(gaussian, "open")]
    cells += [cell(mixture, "modes"), cell(gaussian, "distance"), shown(f"{covered.value:.1%}", covered.off)]
    cells.append(shown(f"{least:.2g}" if least >= 1e-4 else "< 0.0001", any(f.off for f in p.values())))
    return [*cells, "yes" if gaussian.passed and mixture.passed else "no"]


def readme(rows: Sequence[Result]) -> str:
    """The README's table. Raises Incomplete."""
    return markdown(HEAD, [needed(rows, {"label": row.label, **DEFAULTS})["cells"] for row in ROWS])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--operator", default=DEFAULTS["operator"], choices=sorted(OPERATORS), help="a linear one, with its own defaults")
    parser.add_argument("--images", type=int, default=DEFAULTS["images"])
    parser.add_argument("--draws", type=int, default=DEFAULTS["draws"])
    parser.add_argument("--rows", default="", help="only those whose label holds this text")
    args = parser.parse_args()
    from invsolve.config.names import resolve

    operator, likelihood = resolve("operator", args.operator)(image_shape=SHAPE), gaussian_noise_likelihood(SIGMA)
    problems = [image_problem(kind, operator, SIGMA, likelihood, SIGMA) for kind in ("gaussian", "mixture")]
    start, kept, lines = time.perf_counter(), Kept(args.json), []
    for row in (row for row in ROWS if args.rows in row.label):

        def measure(row: Row = row) -> Result:
            found = [calibrate(row.draw(), problem, images=args.images, draws=args.draws) for problem in problems]
            return {"cells": cells_of(row.label, *found), "findings": [one.as_dict() for one in found]}

        key = {"label": row.label, "operator": args.operator, "images": args.images, "draws": args.draws}
        lines.append(kept.row(key, measure)["cells"])
    print(markdown(HEAD, lines))
    print(f"\n{args.images} truths and {args.draws} draws for each, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
