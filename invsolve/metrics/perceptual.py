"""LPIPS, FID and KID with weights that are on this machine; nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.errors import ConfigError
from invsolve.signals import unit_range

# Backbone -> torchvision's file of its ImageNet weights; the linear heads come with torchmetrics.
_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
_LEAST = 32  # pixels a side, below which a backbone has nothing left to compare
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name of them


class Lpips:
    """LPIPS (Zhang et al. 2018) of two images in [-1, 1], clipped; {} where it is left out. ``note`` says what was done and why.

    ``net``: alex, vgg or squeeze, whose weights must lie in torch's hub folder (TORCH_HOME); "auto" takes the first that do,
    "none" leaves it out. Raises ConfigError for weights that are asked for by name and are not there, and for a file that holds none.
    """

    def __init__(self, net: str) -> None:
        folder = _folder()
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

            with _weights(f"lpips = {self.name}", _folder() / _FILES[self.name], self.name):
                self._net = LearnedPerceptualImagePatchSimilarity(net_type=self.name, normalize=True, sync_on_compute=False)
        pair = [unit_range(one).float().expand(-1, 3, -1, -1) for one in (image, truth)]
        with torch.no_grad():
            value = float(self._net(*pair))
        self._net.reset()
        return {"lpips": value}


class SetDistances:
    """FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) of sets of images against reference images.

    Images in [-1, 1] are clipped and rounded to 8 bits, as Inception is fed. ``features`` maps uint8 (B, 3, H, W) to (B, d), and
    ``name`` says what it is; without it Inception V3 in torch-fidelity's form, whose weights must lie in torch's hub folder.
    Raises ConfigError where they do not, and where torch-fidelity is missing.
    """

    def __init__(self, features: Callable[[Tensor], Tensor] | None = None, name: str = "features given") -> None:
        self._features, self.name = (features, name) if features is not None else _inception()
        self._held: dict[str, list[Tensor]] = {}
        self._cut = ""

    def add(self, group: str, images: Tensor) -> None:
        """Adds images (B, C, H, W) to a set."""
        for one in images:
            picture = (255 * unit_range(one).expand(-1, 3, -1, -1)).round().byte()
            with torch.no_grad():
                self._held.setdefault(group, []).append(self._features(picture).reshape(1, -1).double().cpu())

    def add_reference(self, images: Iterable[Tensor], note: str = "") -> None:
        """Adds the images (C, H, W) to compare with; ``note`` says what was done to them."""
        for image in images:
            self.add("reference", image[None])
        self._cut = note

    def of(self, group: str) -> dict[str, float]:
        """{"fid": ..., "kid": ...} of a set. Raises ConfigError for less than two images in it or in the reference."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        sets = [torch.cat(self._held.get(name, [torch.empty(0, 0)])) for name in (group, "reference")]
        if min(map(len, sets)) < 2:
            raise ConfigError(f"FID and KID need two images or more; there are {len(sets[0])}, and {len(sets[1])} in the reference")
        fid = FrechetInceptionDistance(feature=_Given(sets[0].shape[1]), sync_on_compute=False)
        for features, real in zip(sets, (False, True), strict=True):
            fid.update(features, real=real)
        return {"fid": float(fid.compute()), "kid": kernel_distance(*sets)}

    def count(self, group: str) -> int:
        """Images in a set."""
        return len(self._held.get(group, []))

    @property
    def note(self) -> str:
        """What was done, in words."""
        version, images, reference = importlib.metadata.version("torchmetrics"), self.count("one"), self.count("reference")
        return (
            f"FID: torchmetrics {version}; KID: squared MMD of the kernel (f·g/d + 1)³ over all pairs, unbiased (invsolve); {self.name}; "
            f"{images} samples against {reference} reference images{self._cut}, as 8 bits. "
            "FID is too large for few images: compare equal numbers only"
        )


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID, the unbiased squared maximum mean discrepancy of features (m, d) and (n, d) for the kernel (f.g / d + 1)^3."""

    def kernel(f: Tensor, g: Tensor) -> Tensor:
        return (f @ g.mT / f.shape[1] + 1) ** 3

    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(within[0] + within[1] - 2 * kernel(a, b).mean())


class _Given(torch.nn.Module):
    """Features in place of images, for torchmetrics."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        """The features."""
        return features


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@contextmanager
def _weights(what: str, file: Path, network: str) -> Iterator[None]:
    """Looks at a file of weights before a block that loads it; raises ConfigError where one or the other finds none."""
    try:
        # Those who load it themselves would run what a foreign pickle says.
        if not isinstance(held := torch.load(file, map_location="cpu", weights_only=True), dict):
            raise TypeError(f"it is a {type(held).__name__}, not a dict of tensors")
        yield
    except (pickle.UnpicklingError, RuntimeError, TypeError, KeyError, AttributeError, EOFError, OSError) as error:
        raise ConfigError(f"{what}: {file} holds no weights of {network}: {' '.join(str(error).split())}") from error


def _inception() -> tuple[Callable[[Tensor], Tensor], str]:
    """(the network, its name). Raises ConfigError."""
    file = _folder() / _INCEPTION
    if not file.is_file():
        raise ConfigError(f"FID and KID: the weights {_INCEPTION} of torch-fidelity are not in {_folder()}, and nothing is downloaded")
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ConfigError("FID and KID need torch-fidelity: pip install 'invsolve[fid]'")
    from torchmetrics.image.fid import NoTrainInceptionV3

    with _weights("FID and KID", file, "Inception"):
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    version = importlib.metadata.version("torch-fidelity")
    return network, f"Inception V3 of torch-fidelity {version}, 2048 features ({_INCEPTION}, sha256 {digest[:16]})"
