"""How honest draws are: scores, coverage, ranks, and closeness to a posterior that is known.

`scores`, `ranks` and `closeness` are pure functions, image by image; the classes are torchmetrics metrics over them that merge
over processes. Draws are (B, n, *X), n of each of B images, in the units of the signal and as floats: never from pictures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invsolve.metrics.accumulate import CRPS as CRPS
    from invsolve.metrics.accumulate import SBC as SBC
    from invsolve.metrics.accumulate import TARP as TARP
    from invsolve.metrics.accumulate import Coverage as Coverage
    from invsolve.metrics.accumulate import EnergyScore as EnergyScore
    from invsolve.metrics.accumulate import ModeWeights as ModeWeights
    from invsolve.metrics.accumulate import RankHistogram as RankHistogram
    from invsolve.metrics.accumulate import SlicedWasserstein as SlicedWasserstein
    from invsolve.metrics.accumulate import SpreadError as SpreadError
    from invsolve.metrics.accumulate import WhitenedMoments as WhitenedMoments

__all__ = [
    "CRPS", "SBC", "TARP", "Coverage", "EnergyScore", "ModeWeights", "RankHistogram", "SlicedWasserstein", "SpreadError", "WhitenedMoments",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # torchmetrics takes seconds to import, which the functions do without.
    if name in __all__:
        return getattr(importlib.import_module("invsolve.metrics.accumulate"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
