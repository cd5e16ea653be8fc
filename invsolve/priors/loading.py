"""Priors from files: shipped ones by name, diffusers folders by path, hub models by id. Strictly, or not at all."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from invsolve.priors.network import NetworkPrior, TrainingTable
from invsolve.resources import resource, shipped_priors
from invsolve.schedules import alpha_bars


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is the first CUDA device, else Apple's, else the CPU; anything else is taken as it is."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_prior(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    precision: Literal["float32", "bf16"] = "float32",
    channels_last: bool = False,
    compile: bool = False,
    allow_download: bool = False,
) -> NetworkPrior:
    """An unconditional pixel diffusion model in diffusers' folder format, as a prior.

    Args:
        name: a shipped name ("photo"), a local folder with unet/ and scheduler/ (or their files side by side, as older
            models on the hub have them), or a hub id ("google/ddpm-celebahq-256").
        device: "auto", or any torch device.
        precision: "float32" or "bf16" (autocast inside the network).
        channels_last: store the network's tensors channels-last; compile: run the network through torch.compile.
        allow_download: whether a hub id that is not in the local cache may be fetched.

    Raises FileNotFoundError if nothing is found under the name (with the names there are), and ValueError if the weights
    do not fit the configuration in any key, are not finite, do not match the checksum of their card, or if the
    scheduler's configuration does not tell the noise levels and the prediction type of the network.
    """
    folder = _find(str(name), allow_download)
    card = _read_card(folder)
    # Parameters born under inference_mode could never be differentiated through.
    with torch.inference_mode(False):
        unet, digest = _load_unet(_part(folder, "unet"), card)
        table, prediction = _read_scheduler(_part(folder, "scheduler"))
        prior = NetworkPrior(
            unet.to(resolve_device(device)),
            table,
            prediction,
            channels=int(unet.config.in_channels),
            multiple=2 ** (len(unet.config.block_out_channels) - 1),
            precision=precision,
            channels_last=channels_last,
            compile=compile,
            call=_call_unet,
        )
    prior.card, prior.weights_sha256 = card, digest
    return prior


def _call_unet(net: Any, x: Tensor, time: Tensor) -> Tensor:
    return net(x, time, return_dict=False)[0]


def _part(folder: Path, name: str) -> Path:
    """The folder of one part of a pipeline: its own, or (as diffusers has it) that of the pipeline."""
    return folder / name if (folder / name).is_dir() or not (folder / "config.json").is_file() else folder


def _find(name: str, allow_download: bool) -> Path:
    for folder in (resource("data", "priors", name), Path(name).expanduser()):
        flat = (folder / "config.json").is_file() and (folder / "scheduler_config.json").is_file()
        if (folder / "unet").is_dir() or flat:
            return folder
    if Path(name).expanduser().exists():
        raise FileNotFoundError(f"{name} exists but holds no unet/ folder; a diffusers pipeline folder is needed")
    known = shipped_priors()
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no prior {name!r}: not shipped (there are: {', '.join(known) or 'none'}) and no such folder{hint}")
    from huggingface_hub import snapshot_download

    weights = "diffusion_pytorch_model.safetensors"
    patterns = ["card.yaml", "config.json", "scheduler_config.json", weights, "unet/config.json", f"unet/{weights}", "scheduler/*.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not allow_download))
    except OSError as error:
        if allow_download:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(f"{name} is no folder and could not be fetched from the hub: {reason}") from error
        raise FileNotFoundError(
            f"{name} is no folder and not in the local hub cache; pass allow_download=True to fetch it{hint}"
        ) from error


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.yaml"
    if not path.exists():
        return {}
    from omegaconf import OmegaConf

    card = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(card, dict):
        raise ValueError(f"{path} must hold a mapping")
    return {str(k): v for k, v in card.items()}


def _load_unet(folder: Path, card: dict[str, Any]) -> tuple[Any, str]:
    """The network with every weight from the file and every weight of the file used; and the file's sha256."""
    from diffusers import UNet2DModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "diffusion_pytorch_model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; weights are read from safetensors only (diffusers can convert others)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = str(card.get("sha256", digest))
    if expected != digest:
        raise ValueError(f"{path} has sha256 {digest[:12]}..., its card says {expected[:12]}...; the file is damaged or was replaced")
    config = _read_json(folder / "config.json", "without it the network cannot be built")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{folder} holds a {config['_class_name']}; an unconditional UNet2DModel is needed")
    for key in ("class_embed_type", "num_class_embeds"):
        if config.get(key) is not None:
            raise ValueError(f"{folder} holds a class-conditional network ({key}={config[key]!r}); an unconditional one is needed")
    network = UNet2DModel.from_config(config)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    wanted = network.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    wrong = sorted(k for k in wanted.keys() & weights.keys() if wanted[k].shape != weights[k].shape)
    for keys, what in ((missing, "are missing"), (extra, "are unknown to the network"), (wrong, "have another shape")):
        if keys:
            raise ValueError(f"{path} does not fit its config.json: {len(keys)} weights {what}, such as {keys[0]}")
    broken = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
    if broken:
        raise ValueError(f"{path}: {len(broken)} weights hold NaN or infinity, such as {broken[0]}")
    network.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return network, digest


def _read_scheduler(folder: Path) -> tuple[TrainingTable, Any]:
    """The training table and the prediction type that scheduler_config.json states."""
    path = folder / "scheduler_config.json"
    config = _read_json(path, "without it the noise levels of the network are unknown")
    if "Flow" in config.get("_class_name", ""):
        # A `shift` moves the sampler's grid, not the network's clock, which stays 1000 sigma.
        return TrainingTable.flow(int(config.get("num_train_timesteps", 1000))), "flow"
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"{path}: prediction_type {prediction!r} is not known; epsilon, v_prediction or sample is needed")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        # Such as the variance-exploding, EDM and consistency schedulers, whose networks speak of noise in other ways.
        raise ValueError(f"{path}: {config.get('_class_name', 'this scheduler')} states no beta_schedule; a DDPM-like one is needed")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path}: rescale_betas_zero_snr is not supported; its last level holds no signal (sigma/alpha is infinite)")
    steps = int(config.get("num_train_timesteps", 1000))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        bars, product = [], 1.0
        for beta in config["trained_betas"]:
            product *= 1 - beta
            bars.append(product)
    elif kind in ("linear", "scaled_linear"):
        power = 1.0 if kind == "linear" else 2.0
        bars = list(alpha_bars(config.get("beta_start", 1e-4), config.get("beta_end", 2e-2), steps, power))
    elif kind == "squaredcos_cap_v2":
        bars = _cosine_bars(steps)
    else:
        raise ValueError(f"{path}: beta_schedule {kind!r} is not known; linear, scaled_linear or squaredcos_cap_v2 is needed")
    return TrainingTable.from_alpha_bars(bars), prediction


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {otherwise}")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping")
    return config


def _cosine_bars(steps: int) -> list[float]:
    from invsolve.schedules import Cosine

    return [level.alpha**2 for level in reversed(Cosine(steps, train_steps=steps).levels()[:-1])]
