"""Forward operators of imaging inverse problems, as `deepinv.physics` with closed forms, laws and refusals.

Importing this package is cheap: deepinv is loaded when an operator class is first asked for. `OPERATORS` and `NOISES` map
the names used in configuration files to classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.adapter import as_operator as as_operator
    from operators.base import LinearOperator as LinearOperator
    from operators.base import Operator as Operator
    from operators.blur import GaussianBlur as GaussianBlur
    from operators.identity import Identity as Identity
    from operators.inpainting import Inpainting as Inpainting
    from operators.laws import Law as Law
    from operators.laws import check as check
    from operators.matrix import Matrix as Matrix
    from operators.noise import NOISES as NOISES
    from operators.noise import GaussianNoise as GaussianNoise
    from operators.noise import PoissonNoise as PoissonNoise
    from operators.spectral import SeparableOperator as SeparableOperator
    from operators.spectral import SpectralOperator as SpectralOperator
    from operators.streams import generator as generator
    from operators.superresolution import SuperResolution as SuperResolution

# Configuration name -> class. A new operator is its own file and one line here (the imports above only serve type checkers).
OPERATORS: dict[str, str] = {
    "identity": "operators.identity:Identity",
    "matrix": "operators.matrix:Matrix",
    "gaussian_blur": "operators.blur:GaussianBlur",
    "inpainting": "operators.inpainting:Inpainting",
    "super_resolution": "operators.superresolution:SuperResolution",
}

_OTHERS = (
    "operators.adapter:as_operator",
    "operators.base:LinearOperator",
    "operators.base:Operator",
    "operators.laws:Law",
    "operators.laws:check",
    "operators.noise:GaussianNoise",
    "operators.noise:NOISES",
    "operators.noise:PoissonNoise",
    "operators.spectral:SeparableOperator",
    "operators.spectral:SpectralOperator",
    "operators.streams:generator",
)


def _public() -> dict[str, str]:
    return {target.partition(":")[2]: target for target in (*OPERATORS.values(), *_OTHERS)}


def find(table: dict[str, str], name: str) -> Any:
    """The object that `table` (OPERATORS or NOISES) names `name`, imported now; ValueError listing the names otherwise."""
    if name not in table:
        raise ValueError(f"unknown name {name!r}; known: {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __getattr__(name: str) -> Any:
    public = _public()
    if name not in public:
        raise AttributeError(f"module 'operators' has no attribute {name!r}")
    return find(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})
