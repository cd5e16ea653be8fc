"""What the scripts behind the README's tables share: the command line, kept results, Markdown, photographs, PSNR and oracles."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from invsolve.atomic import replacing
from invsolve.data.crops import Crops
from invsolve.resources import resource

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
TV_WEIGHTS = (0.001, 0.002, 0.004, 0.01, 0.03, 0.06, 0.12)
Row = dict[str, Any]
_K = TypeVar("_K")


class Incomplete(Exception):
    """Results that a table needs are not there yet; the message says which."""


def command_line(text: str) -> argparse.ArgumentParser:
    """A command line whose help is the docstring of the script, with --json."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="rows are kept here, and those that it holds are not run again")
    return parser


def precision_option(parser: argparse.ArgumentParser, default: str | None = "bf16") -> None:
    """--precision of the networks; None leaves it to the preset."""
    parser.add_argument(
        "--precision", default=default, choices=["float32", "bf16"], help=f"of the networks (default: {default or 'of the preset'})"
    )


def matches(row: Row, key: Row) -> bool:
    """Whether a row holds all values of a key."""
    return all(row.get(name) == value for name, value in key.items())


class Kept:
    """The rows of a script, in a JSON file where one is named; a script that was stopped continues from it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else []

    def row(self, key: Row, measure: Callable[[], Row]) -> Row:
        """The row with this key: the one that is held, else key and what `measure` gives, printed and written down."""
        for held in self.rows:
            if matches(held, key):
                return held
        self.rows.append(key | measure())
        print(rounded(self.rows[-1]), flush=True)
        if self.path is not None:
            with replacing(self.path) as part:
                part.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        return self.rows[-1]


def needed(rows: Iterable[Row], key: Row) -> Row:
    """The row with this key. Raises Incomplete if there is none."""
    for row in rows:
        if matches(row, key):
            return row
    raise Incomplete(f"no row with {', '.join(f'{name} {value}' for name, value in key.items())}")


def rounded(row: Row) -> Row:
    """A row to be looked at: numbers with three digits after the point, no lists, no settings of an oracle rounded away."""
    kept = {name: value for name, value in row.items() if not isinstance(value, (list, tuple, dict))}
    return {name: round(v, 3) if isinstance(v, float) and "weight" not in name else v for name, v in kept.items()}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bold_best(values: Sequence[float]) -> list[str]:
    """PSNRs with two digits, the highest in bold."""
    return [f"**{value:.2f}**" if value == max(values) else f"{value:.2f}" for value in values]


def photos() -> list[Path]:
    """The evaluation photographs."""
    return [resource("data", "photos", name) for name in PHOTOS]


def crops(paths: Sequence[Path], size: int, per_photo: int) -> Tensor:
    """`per_photo` crops of each photograph at half resolution, on its diagonal, in [-1, 1]: `data=photo_evaluation`."""
    items = (item for path in paths for item in Crops(str(path), size=size, each=per_photo, reduce=2).items())
    return torch.stack([torch.from_numpy(item.load()) for item in items])


def psnr(x: Tensor, truth: Tensor) -> float:
    """Mean over images of the PSNR in dB, both brought from [-1, 1] to [0, 1], x clipped."""
    error = ((x.clamp(-1, 1) - truth) / 2).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def oracle(found: Iterable[tuple[_K, Tensor]], score: Callable[[Tensor], float]) -> tuple[float, _K, Tensor]:
    """(score, setting, images) of the best of many settings, chosen with the truth in hand."""
    return max(((score(x), setting, x) for setting, x in found), key=lambda one: one[0])


def total_variations(operator: Any, y: Tensor) -> Iterator[tuple[float, Tensor]]:
    """(weight, argmin ||y - A x||^2 / 2 + weight TV(x)) for a grid of weights, by Douglas-Rachford iterations of deepinv."""
    import deepinv

    for weight in TV_WEIGHTS:
        prior = deepinv.optim.TVPrior(n_it_max=30, def_crit=1e-5)
        solver = deepinv.optim.DRS(data_fidelity=deepinv.optim.L2(), prior=prior, lambda_reg=weight, stepsize=1.0, max_iter=80)
        with torch.no_grad():
            yield weight, solver(y, operator)
