"""Weight files, read strictly: every weight of the network from the file, every weight of the file in the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What diffusers called the projections of an attention block before 0.12; Stable Diffusion 1 was published with these names.
_RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON mapping. Raises FileNotFoundError ending in `otherwise` if there is no such file, and ValueError if it is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {otherwise}")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping")
    return config


def weights_file(folder: Path, stem: str = "diffusion_pytorch_model") -> Path:
    """The safetensors file of a part: single precision, or the half-precision variant where only that is there.

    Raises FileNotFoundError if there is neither, and ValueError for weights in several shards.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).exists():
            return folder / name
    if any(folder.glob(f"{stem}*.safetensors.index*.json")):
        raise ValueError(f"{folder} holds weights in shards; save the model again with save_pretrained(..., max_shard_size='100GB')")
    raise FileNotFoundError(
        f"{folder / stem}.safetensors is missing; weights are read from safetensors only (diffusers can convert others)"
    )


def check_digests(files: Sequence[Path], folder: Path, card: dict[str, Any]) -> str:
    """One sha256 for all weight files: that of the only file; of several, that of the lines "sha256  path" in order of the paths.

    Raises ValueError if the card of the folder states another, as this one number, or as a mapping from path to sha256.
    """
    found = {}
    for file in files:
        with file.open("rb") as stream:
            found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    whole = next(iter(found.values())) if len(found) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    stated = card.get("sha256", whole)
    if isinstance(stated, dict):
        pairs = [(str(folder / name), digest, str(stated.get(name))) for name, digest in found.items()]
    else:
        what = str(files[0]) if len(files) == 1 else f"{folder} ({len(files)} weight files)"
        pairs = [(what, whole, str(stated))]
    for what, digest, expected in pairs:
        if digest != expected:
            raise ValueError(f"{what} has sha256 {digest[:12]}..., its card says {expected[:12]}...; the file is damaged or was replaced")
    return whole


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError if it is damaged, or holds other than finite floating point."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    check_values(tensors, path)
    return tensors


def check_values(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError unless all tensors are floating point (16 to 64 bits) and finite."""
    other = [k for k, v in tensors.items() if v.dtype not in _FLOATS]
    if other:
        kind = str(tensors[other[0]].dtype).removeprefix("torch.")
        raise ValueError(f"{path}: {len(other)} weights are no floating-point numbers of 16 bits or more, such as {other[0]} ({kind})")
    broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
    if broken:
        raise ValueError(f"{path}: {len(broken)} weights hold NaN or infinity, such as {broken[0]}")


def load_module(cls: Any, folder: Path, config: dict[str, Any]) -> Any:
    """The module `cls` of diffusers as config.json describes it, in single precision, with the weights of the folder.

    Raises ValueError if file and module do not have the same weights of the same shapes, or if a weight is not finite.
    """
    path = weights_file(folder)
    weights = read_tensors(path)
    module = cls.from_config(config)
    wanted = module.state_dict()
    weights = {_present(key, wanted): value for key, value in weights.items()}
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    wrong = sorted(k for k in wanted.keys() & weights.keys() if wanted[k].shape != weights[k].shape)
    for keys, what in ((missing, "are missing"), (extra, "are unknown to the network"), (wrong, "have another shape")):
        if keys:
            raise ValueError(f"{path} does not fit its config.json: {len(keys)} weights {what}, such as {keys[0]}")
    module.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return module


def _present(key: str, wanted: dict[str, Tensor]) -> str:
    """The name that a weight has today, where it was saved under an older one."""
    for old, new in _RENAMED.items():
        if old in key and key not in wanted and key.replace(old, new) in wanted:
            return key.replace(old, new)
    return key
