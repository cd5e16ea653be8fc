"""PSNR, SSIM and NMSE of an image against the truth."""

from __future__ import annotations

from torch import Tensor

from invsolve.signals import unit_range

_SSIM_WINDOW = 11


def fidelity(image: Tensor, truth: Tensor) -> dict[str, float]:
    """PSNR (dB), SSIM and NMSE of an image (C, H, W) against the truth, both in [-1, 1].

    All on float images clipped to [0, 1] (data range 1), of complex ones on the magnitudes. PSNR and SSIM are torchmetrics'
    (Gaussian window of 11, left out below 11 pixels a side); NMSE is ||image - truth||^2 / ||truth||^2, left out for a black truth.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    unit, reference = unit_range(image), unit_range(truth)
    found = {"psnr": float(peak_signal_noise_ratio(unit, reference, data_range=1.0))}
    if min(reference.shape[-2:]) >= _SSIM_WINDOW:
        found["ssim"] = float(structural_similarity_index_measure(unit, reference, data_range=1.0))
    energy = float(reference.double().square().sum())
    if energy > 0:
        found["nmse"] = float((unit.double() - reference.double()).square().sum()) / energy
    return found
