"""Forward operators of imaging inverse problems, as `deepinv.physics` with closed forms, laws and refusals.

Importing this package is cheap: deepinv is loaded when an operator class is first asked for. `OPERATORS` and `NOISES` map
the names used in configuration files to classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from operators.names import missing

if TYPE_CHECKING:
    from operators.adapter import as_operator as as_operator
    from operators.base import LinearOperator as LinearOperator
    from operators.base import Operator as Operator
    from operators.blur import Blur as Blur
    from operators.blur import GaussianBlur as GaussianBlur
    from operators.colour import Colourisation as Colourisation
    from operators.composition import StackedOperator as StackedOperator
    from operators.composition import compose as compose
    from operators.composition import compose_parts as compose_parts
    from operators.composition import pullback as pullback
    from operators.composition import stack as stack
    from operators.composition import stack_parts as stack_parts
    from operators.custom import NetworkOperator as NetworkOperator
    from operators.custom import custom_operator as custom_operator
    from operators.custom import from_callable as from_callable
    from operators.demosaicing import Demosaicing as Demosaicing
    from operators.hdr import HDR as HDR
    from operators.identity import Identity as Identity
    from operators.inpainting import Inpainting as Inpainting
    from operators.jpeg import JPEG as JPEG
    from operators.laws import Law as Law
    from operators.laws import Report as Report
    from operators.laws import check as check
    from operators.laws import norm as norm
    from operators.laws import report as report
    from operators.matrix import Matrix as Matrix
    from operators.mri import MRI as MRI
    from operators.mri import MultiCoilMRI as MultiCoilMRI
    from operators.mri import to_channels as to_channels
    from operators.mri import to_complex as to_complex
    from operators.noise import NOISES as NOISES
    from operators.noise import ComplexGaussianNoise as ComplexGaussianNoise
    from operators.noise import GaussianNoise as GaussianNoise
    from operators.noise import PoissonGaussianNoise as PoissonGaussianNoise
    from operators.noise import PoissonNoise as PoissonNoise
    from operators.noncartesian import NonCartesianMRI as NonCartesianMRI
    from operators.nonlinear_blur import NonlinearBlur as NonlinearBlur
    from operators.phase import CodedDiffraction as CodedDiffraction
    from operators.phase import FourierMagnitude as FourierMagnitude
    from operators.phase import Phaseless as Phaseless
    from operators.phase import StructuredPhaseRetrieval as StructuredPhaseRetrieval
    from operators.phase_baselines import error_reduction as error_reduction
    from operators.phase_baselines import hybrid_input_output as hybrid_input_output
    from operators.phase_baselines import spectral_start as spectral_start
    from operators.ptychography import Ptychography as Ptychography
    from operators.sensing import CompressedSensing as CompressedSensing
    from operators.sensing import StructuredSensing as StructuredSensing
    from operators.spacevarying import SpaceVaryingBlur as SpaceVaryingBlur
    from operators.spectral import SeparableOperator as SeparableOperator
    from operators.spectral import SpectralOperator as SpectralOperator
    from operators.streams import generator as generator
    from operators.superresolution import KernelDownsampling as KernelDownsampling
    from operators.superresolution import SuperResolution as SuperResolution
    from operators.tomography import Tomography as Tomography

# Configuration name -> class. A new operator is its own file and one line here (the imports above only serve type checkers).
OPERATORS: dict[str, str] = {
    "identity": "operators.identity:Identity",
    "denoising": "operators.identity:Identity",
    "matrix": "operators.matrix:Matrix",
    "blur": "operators.blur:Blur",
    "gaussian_blur": "operators.blur:GaussianBlur",
    "space_varying_blur": "operators.spacevarying:SpaceVaryingBlur",
    "nonlinear_blur": "operators.nonlinear_blur:NonlinearBlur",
    "inpainting": "operators.inpainting:Inpainting",
    "super_resolution": "operators.superresolution:SuperResolution",
    "kernel_downsampling": "operators.superresolution:KernelDownsampling",
    "phase_retrieval": "operators.phase:FourierMagnitude",
    "coded_diffraction": "operators.phase:CodedDiffraction",
    "structured_phase_retrieval": "operators.phase:StructuredPhaseRetrieval",
    "ptychography": "operators.ptychography:Ptychography",
    "colourisation": "operators.colour:Colourisation",
    "demosaicing": "operators.demosaicing:Demosaicing",
    "hdr": "operators.hdr:HDR",
    "compressed_sensing": "operators.sensing:CompressedSensing",
    "structured_sensing": "operators.sensing:StructuredSensing",
    "jpeg": "operators.jpeg:JPEG",
    "tomography": "operators.tomography:Tomography",
    "mri": "operators.mri:MRI",
    "multicoil_mri": "operators.mri:MultiCoilMRI",
    "noncartesian_mri": "operators.noncartesian:NonCartesianMRI",
    "compose": "operators.composition:compose_parts",
    "stack": "operators.composition:stack_parts",
    "custom": "operators.custom:custom_operator",
}

_OTHERS = (
    "operators.adapter:as_operator",
    "operators.base:LinearOperator",
    "operators.base:Operator",
    "operators.composition:StackedOperator",
    "operators.composition:compose",
    "operators.composition:pullback",
    "operators.composition:stack",
    "operators.custom:NetworkOperator",
    "operators.custom:from_callable",
    "operators.laws:Law",
    "operators.laws:Report",
    "operators.laws:check",
    "operators.laws:norm",
    "operators.laws:report",
    "operators.mri:to_channels",
    "operators.mri:to_complex",
    "operators.noise:ComplexGaussianNoise",
    "operators.noise:GaussianNoise",
    "operators.noise:NOISES",
    "operators.noise:PoissonGaussianNoise",
    "operators.noise:PoissonNoise",
    "operators.phase:Phaseless",
    "operators.phase_baselines:error_reduction",
    "operators.phase_baselines:hybrid_input_output",
    "operators.phase_baselines:spectral_start",
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
        raise missing(__name__, name, public)
    return find(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})
