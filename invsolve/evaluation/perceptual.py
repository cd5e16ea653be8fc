"""LPIPS with weights that are on this machine; nothing is ever downloaded."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.config import ConfigError
from invsolve.writing import unit_range

# Backbone -> torchvision's file of its ImageNet weights; the linear heads come with torchmetrics.
_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
_LEAST = 32  # pixels a side, below which a backbone has nothing left to compare


class Lpips:
    """LPIPS (Zhang et al. 2018) of two images in [-1, 1], clipped; {} where it is left out. ``note`` says what was done and why.

    ``net``: alex, vgg or squeeze, whose weights must lie in torch's hub folder (TORCH_HOME); "auto" takes the first that do,
    "none" leaves it out. Raises ConfigError for weights that are asked for by name and are not there.
    """

    def __init__(self, net: str) -> None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        there = [name for name, file in _FILES.items() if (folder / file).is_file()]
        if net not in (*_FILES, "auto", "none"):
            raise ConfigError(f"lpips = {net}: expected alex, vgg, squeeze, auto or none")
        if net in _FILES and net not in there:
            raise ConfigError(f"lpips = {net}: its weights {_FILES[net]} are not in {folder}, and nothing is downloaded")
        self._net: Any = None
        self.name = there[0] if net == "auto" and there else net
        if self.name == "none":
            self.note = "LPIPS: left out, as asked"
        elif self.name == "auto":
            self.note = f"LPIPS: left out, for torch's hub folder holds none of {', '.join(_FILES.values())}"
        else:
            version = importlib.metadata.version("torchmetrics")
            self.note = f"LPIPS: torchmetrics {version}, backbone {self.name} ({_FILES[self.name]}), images scaled from [0, 1] to [-1, 1]"

    def __call__(self, image: Tensor, truth: Tensor) -> dict[str, float]:
        """{"lpips": value} of images (C, H, W), or {}."""
        if self.name not in _FILES:
            return {}
        if min(truth.shape[-2:]) < _LEAST:
            self.note = f"LPIPS: left out, for it needs {_LEAST} pixels a side"
            return {}
        if self._net is None:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self._net = LearnedPerceptualImagePatchSimilarity(net_type=self.name, normalize=True)
        pair = [unit_range(one).float().expand(-1, 3, -1, -1) for one in (image, truth)]
        with torch.no_grad():
            value = float(self._net(*pair))
        self._net.reset()
        return {"lpips": value}
