"""Priors from files: shipped ones by name, diffusers folders by path, hub models by id. Strictly, or not at all."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from invsolve.config import trees
from invsolve.priors.checkpoints import diffusers, foreign
from invsolve.priors.checkpoints.embedders import load_embedder
from invsolve.priors.checkpoints.weights import check_digests
from invsolve.priors.conditional import ConditionalNetworkPrior
from invsolve.priors.latent import LatentPrior
from invsolve.priors.network import NetworkPrior, Unshuffled
from invsolve.resources import resource, shipped_priors

# What is fetched of a hub model: configurations, and single-file safetensors in full precision.
_PARTS = ("unet", "vae", "vqvae")
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PATTERNS = [
    *("card.yaml", "config.json", "scheduler_config.json", _WEIGHTS, "scheduler/*.json", "classes.json", "classes.safetensors"),
    *(f"{part}/{name}" for part in _PARTS for name in ("config.json", _WEIGHTS)),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/*.json", "tokenizer/*.txt"),
]


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
    prompt: str | None = None,
    guidance: float = 1.0,
    checkpointing: bool = False,
    tile: int | None = None,
) -> NetworkPrior | LatentPrior:
    """A diffusion model in diffusers' folder format, as a prior: of pixels, or of the codes of its autoencoder.

    Args:
        name: a shipped name ("photo"), a local folder, or a hub id ("google/ddpm-celebahq-256"). A folder holds unet/ and
            scheduler/ (or their files side by side, as older models on the hub have them); vae/ or vqvae/ makes it a latent
            prior; text_encoder/ and tokenizer/, or classes.safetensors and classes.json, belong to a conditional network. An
            integer "pixel_unshuffle" in unet/config.json says that the network works behind a pixel-unshuffle by this factor.
        device: "auto", or any torch device.
        precision: "float32", or "bf16" for autocast inside network and autoencoder (what they give is float32 either way).
        channels_last: store the tensors of both channels-last; compile: run the network through torch.compile.
        allow_download: whether a hub id that is not in the local cache may be fetched.
        prompt: what a conditional prior is conditioned on until it is told otherwise: a text, or the name of a class. None is
            its null embedding.
        guidance: weight of classifier-free guidance, see `ConditionalNetworkPrior`.
        checkpointing: compute activations of network and autoencoder again for a backward pass instead of keeping them: the
            same results with less memory, for about one more forward pass.
        tile: side in pixels of the tiles in which larger images are encoded and decoded; see `DiffusersAutoencoder`.

    Raises FileNotFoundError if nothing is found under the name (with the names there are), ImportError if a text encoder needs
    a package that is not installed, and ValueError if the weights do not fit the configuration in any key, are not finite, do
    not match the checksum of their card, if the parts do not fit together, if the scheduler's configuration does not tell
    the noise levels and the prediction type of the network, or if an option is for another kind of prior.
    """
    folder = _find(str(name), allow_download)
    card = _read_card(folder)
    # Parameters born under inference_mode could never be differentiated through.
    with torch.inference_mode(False):
        config = diffusers.read_unet_config(diffusers.part(folder, "unet"))
        conditional = config["_class_name"] == "UNet2DConditionModel"
        _check_options(folder, conditional, prompt, guidance, tile)
        digest = check_digests(diffusers.weight_files(folder, conditional), folder, card)
        table, prediction = diffusers.read_scheduler(diffusers.part(folder, "scheduler"))
        if card.get("prediction_type", prediction) != prediction:
            raise ValueError(f"{folder}: the scheduler says {prediction}, the card {card['prediction_type']}; one of them is wrong")
        embedder = load_embedder(folder) if conditional else None
        unet = diffusers.load_unet(diffusers.part(folder, "unet"), config, checkpointing)
        factor = int(config.get(diffusers.UNSHUFFLE, 1))
        where, multiple = resolve_device(device), factor * 2 ** (len(unet.config.block_out_channels) - 1)
        layout: dict[str, Any] = {"precision": precision, "channels_last": channels_last}
        options: dict[str, Any] = {"multiple": multiple, "compile": compile, **layout}
        options["channels"] = int(unet.config.in_channels) // factor**2
        prior: NetworkPrior
        if embedder is None:
            network = unet if factor == 1 else Unshuffled(unet, factor)
            prior = NetworkPrior(network.to(where), table, prediction, call=_call_unet, **options)
        else:
            null = embedder.to(where).null
            diffusers.check_width(folder, unet, null.shape)
            prior = ConditionalNetworkPrior(
                unet.to(where), table, prediction, call=_call_conditional, null=null, embedder=embedder, guidance=guidance, **options
            )
            if prompt is not None:
                prior = prior.conditioned(prior.embed(prompt))
        codec = diffusers.autoencoder_folder(folder)
        prior.card, prior.weights_sha256 = card, digest
        if codec is None:
            return prior
        if factor != 1:
            raise ValueError(f"{folder}: {diffusers.UNSHUFFLE}={factor} is for a network of pixels, not for one of codes ({codec.name}/)")
        return LatentPrior(prior, diffusers.load_autoencoder(codec, unet, multiple, checkpointing, tile=tile, **layout).to(where))


def _call_unet(net: Any, x: Tensor, time: Tensor) -> Tensor:
    return net(x, time, return_dict=False)[0]


def _call_conditional(net: Any, x: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
    return net(x, time, encoder_hidden_states=embeddings, return_dict=False)[0]


def _check_options(folder: Path, conditional: bool, prompt: str | None, guidance: float, tile: int | None) -> None:
    if not conditional and prompt is not None:
        raise ValueError(f"prompt={prompt!r}, but the prior in {folder} is unconditional; leave prompt out")
    if not conditional and guidance != 1:
        raise ValueError(f"guidance={guidance}, but the prior in {folder} is unconditional; leave guidance out")
    if tile is not None and diffusers.autoencoder_folder(folder) is None:
        raise ValueError(f"tile={tile}, but the prior in {folder} has no autoencoder (vae/ or vqvae/); leave tile out")


def _find(name: str, allow_download: bool) -> Path:
    for folder in (resource("data", "priors", name), Path(name).expanduser()):
        flat = (folder / "config.json").is_file() and (folder / "scheduler_config.json").is_file()
        if (folder / "unet").is_dir() or flat:
            return folder
    given = Path(name).expanduser()
    if given.exists():
        _refuse(given)
    known = shipped_priors()
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no prior {name!r}: not shipped (there are: {', '.join(known) or 'none'}) and no such folder{hint}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS, local_files_only=not allow_download))
    except OSError as error:
        if allow_download:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(f"{name} is no folder and could not be fetched from the hub: {reason}") from error
        raise FileNotFoundError(
            f"{name} is no folder and not in the local hub cache; pass allow_download=True (in a run prior.allow_download=true) "
            f"to fetch it{hint}"
        ) from error


def _refuse(given: Path) -> None:
    """Raises for a path that exists and is no pipeline folder with a UNet: says what it is, and what to do about it."""
    if given.is_file():
        raise ValueError(foreign.advice(given))
    held = sorted(path for path in given.iterdir() if path.suffix.lower() in foreign.SUFFIXES and path.is_file())
    if held:
        raise ValueError(foreign.advice(held[0]))
    if (given / "transformer").is_dir():
        raise ValueError(f"{given} holds a transformer/, such as Stable Diffusion 3; networks in unet/ are run, transformers are not")
    raise FileNotFoundError(f"{given} exists but holds no unet/ folder; a diffusers pipeline folder is needed")


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.yaml"
    if not path.exists():
        return {}
    try:
        card = trees.read(path)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML that can be read: {error}") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path} must hold a mapping")
    return card
