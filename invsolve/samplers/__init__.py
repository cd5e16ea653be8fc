"""Posterior samplers. Each is one file and one line here."""

from invsolve.samplers.base import Sampler, State
from invsolve.samplers.daps import DAPS
from invsolve.samplers.dps import DPS
from invsolve.samplers.mcg import MCG
from invsolve.samplers.pnp_ula import PnPULA
from invsolve.samplers.unconditional import Unconditional

SAMPLERS: dict[str, str] = {
    "daps": "invsolve.samplers.daps:DAPS",
    "dps": "invsolve.samplers.dps:DPS",
    "mcg": "invsolve.samplers.mcg:MCG",
    "pnp_ula": "invsolve.samplers.pnp_ula:PnPULA",
    "unconditional": "invsolve.samplers.unconditional:Unconditional",
}
"""Configuration names of the samplers."""

__all__ = ["DAPS", "MCG", "DPS", "SAMPLERS", "PnPULA", "Sampler", "State", "Unconditional"]
