"""The operators on which every law is measured: each module here has a dict CASES of name -> constructor."""

import importlib
import pkgutil
from collections.abc import Callable

import torch
from torch import Tensor

from operators import Operator, generator


def rand(*shape: int) -> Tensor:
    """Uniform numbers in [0, 1), float64, the same at every call."""
    return torch.rand(shape, generator=generator(0, "test"), dtype=torch.float64)


# A case that exists for some batch sizes only, such as one with a mask per sample: name -> sizes.
BATCHES: dict[str, tuple[int, ...]] = {}
CASES: dict[str, Callable[[], Operator]] = {}
for _found in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    _module = importlib.import_module(f"{__name__}.{_found}")
    _twice = CASES.keys() & _module.CASES.keys()
    if _twice:
        raise ValueError(f"{_found} names a case that exists already: {sorted(_twice)}")
    CASES.update(_module.CASES)
    BATCHES.update(getattr(_module, "BATCHES", {}))
