"""deepinv physics taken through the adapter."""

from collections.abc import Callable

import deepinv.physics as dinv
import torch

from operators import Operator, as_operator

from . import rand

CASES: dict[str, Callable[[], Operator]] = {
    "deepinv inpainting": lambda: as_operator(dinv.Inpainting((3, 8, 9), mask=(rand(3, 8, 9) > 0.5).float())),
    "deepinv inpainting, mask per sample": lambda: as_operator(
        dinv.Inpainting((1, 4, 4), mask=torch.eye(4).repeat(3, 1, 1)[:, None].roll(1, -1))
    ),
    "deepinv blur fft": lambda: as_operator(dinv.BlurFFT((1, 8, 9), filter=rand(1, 1, 3, 3).float())),
    "deepinv blur reflect": lambda: as_operator(dinv.Blur(rand(1, 1, 3, 3).float() / 5, padding="reflect"), (1, 6, 7)),
    "deepinv downsampling": lambda: as_operator(dinv.Downsampling((1, 16, 16), filter="bilinear", factor=2)),
    "deepinv downsampling, filter larger than image": lambda: as_operator(dinv.Downsampling((1, 8, 8), filter="gaussian", factor=2)),
    "deepinv decolorize": lambda: as_operator(dinv.Decolorize(), (3, 5, 6)),
    "deepinv mri": lambda: as_operator(dinv.MRI(mask=(rand(8, 6) > 0.5).float(), img_size=(8, 6))),
    "deepinv multicoil mri": lambda: as_operator(
        dinv.MultiCoilMRI(mask=(rand(6, 6) > 0.4).float(), coil_maps=torch.complex(rand(3, 6, 6), rand(3, 6, 6)).cfloat(), img_size=(6, 6))
    ),
    "deepinv phase retrieval": lambda: as_operator(
        dinv.PhaseRetrieval(dinv.Blur(rand(1, 1, 3, 3).float() / 5, padding="circular")), (1, 5, 6)
    ),
}
BATCHES = {"deepinv inpainting, mask per sample": (3,)}
