"""Forward operators of imaging inverse problems, as `deepinv.physics` with closed forms, laws and refusals.

Importing this package is cheap: deepinv is loaded when an operator class is first asked for. `OPERATORS` and `NOISES` map
the names used in configuration files to classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from operators.core.names import missing

if TYPE_CHECKING:
    from operators.blur.blur import Blur as Blur
    from operators.blur.blur import GaussianBlur as GaussianBlur
    from operators.blur.nonlinear_blur import NonlinearBlur as NonlinearBlur
    from operators.blur.spacevarying import SpaceVaryingBlur as SpaceVaryingBlur
    from operators.blur.superresolution import KernelDownsampling as KernelDownsampling
    from operators.blur.superresolution import SuperResolution as SuperResolution
    from operators.core.adapter import as_operator as as_operator
    from operators.core.base import LinearOperator as LinearOperator
    from operators.core.base import Operator as Operator
    from operators.core.composition import StackedOperator as StackedOperator
    from operators.core.composition import compose as compose
    from operators.core.composition import compose_parts as compose_parts
    from operators.core.composition import pullback as pullback
    from operators.core.composition import stack as stack
    from operators.core.composition import stack_parts as stack_parts
    from operators.core.custom import NetworkOperator as NetworkOperator
    from operators.core.custom import custom_operator as custom_operator
    from operators.core.custom import from_callable as from_callable
    from operators.core.laws import Law as Law
    from operators.core.laws import Report as Report
    from operators.core.laws import check as check
    from operators.core.laws import norm as norm
    from operators.core.laws import report as report
    from operators.core.noise import NOISES as NOISES
    from operators.core.noise import ComplexGaussianNoise as ComplexGaussianNoise
    from operators.core.noise import GaussianNoise as GaussianNoise
    from operators.core.noise import PoissonGaussianNoise as PoissonGaussianNoise
    from operators.core.noise import PoissonNoise as PoissonNoise
    from operators.core.spectral import SeparableOperator as SeparableOperator
    from operators.core.spectral import SpectralOperator as SpectralOperator
    from operators.core.streams import generator as generator
    from operators.mri.cartesian import MRI as MRI
    from operators.mri.cartesian import MultiCoilMRI as MultiCoilMRI
    from operators.mri.cartesian import to_channels as to_channels
    from operators.mri.cartesian import to_complex as to_complex
    from operators.mri.noncartesian import NonCartesianMRI as NonCartesianMRI
    from operators.phase.baselines import error_reduction as error_reduction
    from operators.phase.baselines import hybrid_input_output as hybrid_input_output
    from operators.phase.baselines import spectral_start as spectral_start
    from operators.phase.ptychography import Ptychography as Ptychography
    from operators.phase.retrieval import CodedDiffraction as CodedDiffraction
    from operators.phase.retrieval import FourierMagnitude as FourierMagnitude
    from operators.phase.retrieval import Phaseless as Phaseless
    from operators.phase.retrieval import StructuredPhaseRetrieval as StructuredPhaseRetrieval
    from operators.pixels.colour import Colourisation as Colourisation
    from operators.pixels.demosaicing import Demosaicing as Demosaicing
    from operators.pixels.hdr import HDR as HDR
    from operators.pixels.identity import Identity as Identity
    from operators.pixels.inpainting import Inpainting as Inpainting
    from operators.pixels.jpeg import JPEG as JPEG
    from operators.projections.matrix import Matrix as Matrix
    from operators.projections.sensing import CompressedSensing as CompressedSensing
    from operators.projections.sensing import StructuredSensing as StructuredSensing
    from operators.projections.tomography import Tomography as Tomography

# Configuration name -> class. A new operator is its own file and one line here (the imports above only serve type checkers).
OPERATORS: dict[str, str] = {
    "identity": "operators.pixels.identity:Identity",
    "denoising": "operators.pixels.identity:Identity",
    "matrix": "operators.projections.matrix:Matrix",
    "blur": "operators.blur.blur:Blur",
    "gaussian_blur": "operators.blur.blur:GaussianBlur",
    "space_varying_blur": "operators.blur.spacevarying:SpaceVaryingBlur",
    "nonlinear_blur": "operators.blur.nonlinear_blur:NonlinearBlur",
    "inpainting": "operators.pixels.inpainting:Inpainting",
    "super_resolution": "operators.blur.superresolution:SuperResolution",
    "kernel_downsampling": "operators.blur.superresolution:KernelDownsampling",
    "phase_retrieval": "operators.phase.retrieval:FourierMagnitude",
    "coded_diffraction": "operators.phase.retrieval:CodedDiffraction",
    "structured_phase_retrieval": "operators.phase.retrieval:StructuredPhaseRetrieval",
    "ptychography": "operators.phase.ptychography:Ptychography",
    "colourisation": "operators.pixels.colour:Colourisation",
    "demosaicing": "operators.pixels.demosaicing:Demosaicing",
    "hdr": "operators.pixels.hdr:HDR",
    "compressed_sensing": "operators.projections.sensing:CompressedSensing",
    "structured_sensing": "operators.projections.sensing:StructuredSensing",
    "jpeg": "operators.pixels.jpeg:JPEG",
    "tomography": "operators.projections.tomography:Tomography",
    "mri": "operators.mri.cartesian:MRI",
    "multicoil_mri": "operators.mri.cartesian:MultiCoilMRI",
    "noncartesian_mri": "operators.mri.noncartesian:NonCartesianMRI",
    "compose": "operators.core.composition:compose_parts",
    "stack": "operators.core.composition:stack_parts",
    "custom": "operators.core.custom:custom_operator",
}

_OTHERS = (
    "operators.core.adapter:as_operator",
    "operators.core.base:LinearOperator",
    "operators.core.base:Operator",
    "operators.core.composition:StackedOperator",
    "operators.core.composition:compose",
    "operators.core.composition:pullback",
    "operators.core.composition:stack",
    "operators.core.custom:NetworkOperator",
    "operators.core.custom:from_callable",
    "operators.core.laws:Law",
    "operators.core.laws:Report",
    "operators.core.laws:check",
    "operators.core.laws:norm",
    "operators.core.laws:report",
    "operators.mri.cartesian:to_channels",
    "operators.mri.cartesian:to_complex",
    "operators.core.noise:ComplexGaussianNoise",
    "operators.core.noise:GaussianNoise",
    "operators.core.noise:NOISES",
    "operators.core.noise:PoissonGaussianNoise",
    "operators.core.noise:PoissonNoise",
    "operators.phase.retrieval:Phaseless",
    "operators.phase.baselines:error_reduction",
    "operators.phase.baselines:hybrid_input_output",
    "operators.phase.baselines:spectral_start",
    "operators.core.spectral:SeparableOperator",
    "operators.core.spectral:SpectralOperator",
    "operators.core.streams:generator",
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
