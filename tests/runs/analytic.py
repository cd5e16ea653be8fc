"""A stationary Gaussian prior in float64 for 3 x 16 x 16 images; as a script, an evaluation under it (for launchers)."""

import sys
from pathlib import Path

import torch
from shared import stationary_prior


def analytic_prior():
    return stationary_prior(torch.float64)


def arrays_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every array file by id."""
    return {path.stem: path.read_bytes() for path in sorted((folder / "arrays").iterdir())}


def main(name, *overrides):
    from invsolve.config.load import load
    from invsolve.runs.lightning import evaluate

    result = evaluate(load(name, overrides), analytic_prior())
    return 1 if result.failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(*sys.argv[1:]))
