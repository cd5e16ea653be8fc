"""invsolve: sample from the posterior of imaging inverse problems under a diffusion prior.

Signals live in the prior's range ([-1, 1] for images), and sigma is quoted in those units. See `sample`.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _refuse_other_operators() -> None:
    """Raises ImportError, naming the file, where another module named operators stands in the way of ours; executes none of it."""
    ours = Path(__file__).resolve().parent.parent / "operators" / "__init__.py"
    loaded = sys.modules.get("operators")
    spec = importlib.util.find_spec("operators") if loaded is None else None
    found = getattr(loaded, "__file__", None) if spec is None else spec.origin
    if found is not None and ours.is_file() and Path(found).resolve() != ours:
        raise ImportError(f"{found} is in the way of invsolve's package `operators`; rename it, or run from another folder")


_refuse_other_operators()

import invsolve._moved as _moved  # noqa: E402
from operators.core.names import missing  # noqa: E402

_moved.install()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from invsolve.engine.loop import sample
    from invsolve.engine.observers import Event, Trajectory
    from invsolve.errors import ConfigError, Divergence, Unfit
    from invsolve.levels import Level, Move
    from invsolve.posterior import Posterior
    from invsolve.priors.checkpoints.loading import load_prior

_HOMES = {
    "ConfigError": "invsolve.errors",
    "Divergence": "invsolve.errors",
    "Event": "invsolve.engine.observers",
    "Level": "invsolve.levels",
    "Move": "invsolve.levels",
    "Posterior": "invsolve.posterior",
    "Trajectory": "invsolve.engine.observers",
    "Unfit": "invsolve.errors",
    "load_prior": "invsolve.priors.checkpoints.loading",
    "sample": "invsolve.engine.loop",
}

__all__ = ["ConfigError", "Divergence", "Event", "Level", "Move", "Posterior", "Trajectory", "Unfit", "__version__", "load_prior", "sample"]


def __getattr__(name: str) -> Any:
    # Heavy packages (deepinv, diffusers) are imported by what needs them, not by `import invsolve`.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise missing(__name__, name, __all__)
