"""The parts of a pipeline folder in diffusers' format: which there are, and whether they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invsolve.numerics.recompute import recomputed
from invsolve.priors.checkpoints.autoencoders import DiffusersAutoencoder
from invsolve.priors.checkpoints.weights import load_module, read_json, weights_file
from invsolve.priors.network import TrainingTable
from invsolve.schedules import MOST_LEVELS, alpha_bars

# Conditions that a network may want beside (or in place of) the embeddings, and that we would have to make up.
_OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "time_cond_proj_dim")

# In unet/config.json: the network sees the image through a pixel-unshuffle by this factor. Ours; diffusers knows no such key.
UNSHUFFLE = "pixel_unshuffle"


def part(folder: Path, name: str) -> Path:
    """The folder of one part of a pipeline: its own, or (as diffusers has it) that of the pipeline."""
    return folder / name if (folder / name).is_dir() or not (folder / "config.json").is_file() else folder


def autoencoder_folder(folder: Path) -> Path | None:
    """vae/ or vqvae/, or None: the pipeline is one of pixels."""
    return next((folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), None)


def read_unet_config(folder: Path) -> dict[str, Any]:
    """config.json of a network that we can run. Raises ValueError for another, with the key that says so."""
    config = read_json(folder / "config.json", "without it the network cannot be built")
    kind = config.setdefault("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        raise ValueError(f"{folder} holds a {kind}; a UNet2DModel or a UNet2DConditionModel is needed")
    for key in _OTHER_CONDITIONS:
        if config.get(key) is not None:
            wanted = "an unconditional one" if kind == "UNet2DModel" else "one that takes embeddings alone (Stable Diffusion 1 or 2)"
            # Such as the sizes and the pooled text of Stable Diffusion XL, or the guidance of consistency models.
            what = "a class-conditional" if "class" in key else "an otherwise conditional"
            raise ValueError(f"{folder} holds {what} network ({key}={config[key]!r}); {wanted} is needed")
    inputs, outputs = (int(config.get(f"{side}_channels", 3 if kind == "UNet2DModel" else 4)) for side in ("in", "out"))
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"{folder} maps {inputs} channels to {outputs}; as many, or twice as many with a learned variance, are needed "
            "(inpainting and upscaling networks take other inputs, and are no priors)"
        )
    _check_unshuffle(folder, config, inputs)
    return config


def _check_unshuffle(folder: Path, config: dict[str, Any], inputs: int) -> None:
    """Raises ValueError for a pixel_unshuffle that is no factor, that does not fit the channels, or that is not for this network."""
    factor = config.get(UNSHUFFLE)
    if factor is None:
        return
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
        raise ValueError(f"{folder}: {UNSHUFFLE}={factor!r}; an integer of at least 2 is needed, or no such key")
    if inputs % factor**2:
        raise ValueError(f"{folder}: {UNSHUFFLE}={factor} makes channels in multiples of {factor**2}, but the network takes {inputs}")
    if config["_class_name"] != "UNet2DModel":
        raise ValueError(f"{folder}: {UNSHUFFLE}={factor} is for a UNet2DModel, not for a {config['_class_name']}")


def load_unet(folder: Path, config: dict[str, Any], checkpointing: bool) -> Any:
    """The network; with `checkpointing`, its blocks' activations are computed again for a backward pass."""
    import diffusers

    known = {key: value for key, value in config.items() if key != UNSHUFFLE}
    network = load_module(getattr(diffusers, config["_class_name"]), folder, known)
    if checkpointing:
        network.enable_gradient_checkpointing(recomputed)
    return network


def load_autoencoder(folder: Path, unet: Any, multiple: int, checkpointing: bool, **options: Any) -> DiffusersAutoencoder:
    """The autoencoder of a latent pipeline whose network is `unet`, for codes with sides that are multiples of `multiple`.

    `options` (tile, precision, channels_last) are those of `DiffusersAutoencoder`.

    Raises ValueError for a class we do not know, for statistics we do not apply, and if its codes are not the network's.
    """
    import diffusers

    config = read_json(folder / "config.json", "without it the autoencoder cannot be built")
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "VQModel"):
        raise ValueError(f"{folder} holds a {kind}; an AutoencoderKL or a VQModel is needed")
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise ValueError(f"{folder}: {key} is not supported; a scaling_factor and a shift_factor are")
    if config.get("lookup_from_codebook"):
        raise ValueError(f"{folder} decodes codebook indices (lookup_from_codebook); codes of real numbers are needed")
    network = load_module(getattr(diffusers, kind), folder, config)
    codes, taken = int(network.config.latent_channels), int(unet.config.in_channels)
    if codes != taken:
        raise ValueError(f"{folder} makes codes of {codes} channels, but the network in unet/ takes {taken}; they are of different models")
    if checkpointing:
        network.enable_gradient_checkpointing(recomputed)
    # The VQ models of latent diffusion were trained with codes as they are, and their folders on the hub say nothing. The
    # default of diffusers' VQModel, 0.18215, is that of Stable Diffusion's autoencoder and gives noise.
    default = network.config.scaling_factor if kind == "AutoencoderKL" else 1.0
    scale, shift = config.get("scaling_factor", default), config.get("shift_factor")
    reduction = 2 ** (len(network.config.block_out_channels) - 1)
    return DiffusersAutoencoder(network, scale, shift or 0.0, multiple=multiple * reduction, **options)


def weight_files(folder: Path, conditional: bool) -> list[Path]:
    """The weight files that are read of a pipeline folder, in a fixed order."""
    files = [weights_file(part(folder, "unet"))]
    codec = autoencoder_folder(folder)
    if codec is not None:
        files.append(weights_file(codec))
    if conditional and (folder / "classes.safetensors").exists():
        files.append(folder / "classes.safetensors")
    elif conditional and (folder / "text_encoder").is_dir():
        files.append(weights_file(folder / "text_encoder", "model"))
    return files


def check_width(folder: Path, unet: Any, shape: Sequence[int]) -> None:
    """Raises ValueError if the network takes embeddings of another width than those of `shape` (tokens, width)."""
    width = unet.config.cross_attention_dim
    widths = {int(w) for w in width} if isinstance(width, (list, tuple)) else {int(width)}
    if widths != {int(shape[-1])}:
        taken = ", ".join(map(str, sorted(widths)))
        raise ValueError(f"{folder}: the embeddings have width {shape[-1]}, but the network takes {taken}; they belong to different models")


def read_scheduler(folder: Path) -> tuple[TrainingTable, Any]:
    """The training table and the prediction type that scheduler_config.json states."""
    path = folder / "scheduler_config.json"
    config = read_json(path, "without it the noise levels of the network are unknown")
    steps = _number(config, "num_train_timesteps", 1000, path)
    if steps != int(steps) or not 1 <= steps <= MOST_LEVELS:
        raise ValueError(f"{path}: num_train_timesteps is {steps:g}; a whole number from 1 to {MOST_LEVELS} is needed")
    if "Flow" in str(config.get("_class_name", "")):
        # A `shift` moves the sampler's grid, not the network's clock, which stays 1000 sigma.
        return TrainingTable.flow(int(steps)), "flow"
    prediction = _prediction(config, path)
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        # Such as the variance-exploding, EDM and consistency schedulers, whose networks speak of noise in other ways.
        raise ValueError(f"{path}: {config.get('_class_name', 'this scheduler')} states no beta_schedule; a DDPM-like one is needed")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path}: rescale_betas_zero_snr is not supported; its last level holds no signal (sigma/alpha is infinite)")
    return TrainingTable.from_alpha_bars(_bars(config, int(steps), path)), prediction


def _prediction(config: dict[str, Any], path: Path) -> str:
    """What the network predicts: `prediction_type`, or before diffusers 0.10 `predict_epsilon` (true, or false for the image)."""
    stated, epsilon = config.get("prediction_type"), config.get("predict_epsilon")
    if epsilon is not None and not isinstance(epsilon, bool):
        raise ValueError(f"{path}: predict_epsilon is {epsilon!r}; true or false is needed")
    older = None if epsilon is None else "epsilon" if epsilon else "sample"
    if stated is not None and older is not None and stated != older:
        raise ValueError(
            f"{path}: prediction_type {stated!r} and predict_epsilon={str(epsilon).lower()} contradict each other; delete the wrong one"
        )
    prediction = stated or older or "epsilon"
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"{path}: prediction_type {prediction!r} is not known; epsilon, v_prediction or sample is needed")
    return str(prediction)


def _bars(config: dict[str, Any], steps: int, path: Path) -> list[float]:
    """alpha_bar of every training level. Raises ValueError naming the key that is off."""
    betas, kind = config.get("trained_betas"), config.get("beta_schedule", "linear")
    if betas is not None:
        if not isinstance(betas, list) or not 1 <= len(betas) <= MOST_LEVELS:
            raise ValueError(f"{path}: trained_betas must be a list of 1 to {MOST_LEVELS} numbers")
        bars, product = [], 1.0
        for place, beta in enumerate(betas):
            if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < 1:
                raise ValueError(f"{path}: trained_betas[{place}] is {beta!r}; numbers in (0, 1) are needed")
            product *= 1 - beta
            bars.append(product)
    elif kind in ("linear", "scaled_linear"):
        power = 1.0 if kind == "linear" else 2.0
        first, last = (_number(config, key, default, path) for key, default in (("beta_start", 1e-4), ("beta_end", 2e-2)))
        try:
            bars = list(alpha_bars(first, last, steps, power))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    elif kind == "squaredcos_cap_v2":
        bars = _cosine_bars(steps)
    else:
        raise ValueError(f"{path}: beta_schedule {kind!r} is not known; linear, scaled_linear or squaredcos_cap_v2 is needed")
    return bars


def _number(config: dict[str, Any], key: str, default: float, path: Path) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{path}: {key} is {str(value)[:40]!r}; a finite number is needed")
    return value


def _cosine_bars(steps: int) -> list[float]:
    from invsolve.schedules import Cosine

    return [level.alpha**2 for level in reversed(Cosine(steps, train_steps=steps).levels()[:-1])]
