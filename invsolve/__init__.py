"""invsolve: sample from the posterior of imaging inverse problems under a diffusion prior.

Signals live in the prior's range ([-1, 1] for images), and sigma is quoted in those units. See `sample`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from operators.names import missing

__version__ = "0.1.0"

if TYPE_CHECKING:
    from invsolve.levels import Level, Move
    from invsolve.loop import sample
    from invsolve.monitor import Divergence, Event, Trajectory
    from invsolve.posterior import Posterior
    from invsolve.priors.loading import load_prior

_HOMES = {
    "Divergence": "invsolve.monitor",
    "Event": "invsolve.monitor",
    "Level": "invsolve.levels",
    "Move": "invsolve.levels",
    "Posterior": "invsolve.posterior",
    "Trajectory": "invsolve.monitor",
    "load_prior": "invsolve.priors.loading",
    "sample": "invsolve.loop",
}

__all__ = ["Divergence", "Event", "Level", "Move", "Posterior", "Trajectory", "__version__", "load_prior", "sample"]


def __getattr__(name: str) -> Any:
    # Heavy packages (deepinv, diffusers) are imported by what needs them, not by `import invsolve`.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise missing(__name__, name, __all__)
