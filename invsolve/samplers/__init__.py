"""Posterior samplers. Each is one file and one line here."""

from invsolve.samplers.base import Sampler, State
from invsolve.samplers.dps import DPS
from invsolve.samplers.unconditional import Unconditional

SAMPLERS: dict[str, str] = {
    "dps": "invsolve.samplers.dps:DPS",
    "unconditional": "invsolve.samplers.unconditional:Unconditional",
}
"""Configuration names of the samplers."""

__all__ = ["DPS", "SAMPLERS", "Sampler", "State", "Unconditional"]
