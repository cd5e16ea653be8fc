"""Posterior samplers. Each is one file and one line here."""

from typing import TYPE_CHECKING

from invsolve.engine.protocol import Sampler, State
from invsolve.samplers.daps import DAPS
from invsolve.samplers.dps import DPS
from invsolve.samplers.mcg import MCG
from invsolve.samplers.p2l import P2L
from invsolve.samplers.pnp_ula import PnPULA
from invsolve.samplers.psld import PSLD
from invsolve.samplers.resample import ReSample
from invsolve.samplers.unconditional import Unconditional
from operators.core.names import hints

SAMPLERS: dict[str, str] = {
    "daps": "invsolve.samplers.daps:DAPS",
    "dps": "invsolve.samplers.dps:DPS",
    "mcg": "invsolve.samplers.mcg:MCG",
    "p2l": "invsolve.samplers.p2l:P2L",
    "pnp_ula": "invsolve.samplers.pnp_ula:PnPULA",
    "psld": "invsolve.samplers.psld:PSLD",
    "resample": "invsolve.samplers.resample:ReSample",
    "unconditional": "invsolve.samplers.unconditional:Unconditional",
}
"""Configuration names of the samplers."""

__all__ = ["DAPS", "MCG", "P2L", "PSLD", "DPS", "SAMPLERS", "PnPULA", "ReSample", "Sampler", "State", "Unconditional"]

if not TYPE_CHECKING:
    __getattr__ = hints(__name__)
