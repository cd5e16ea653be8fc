"""What a single checkpoint file is of, told from the names in it, and what can be done with it. Nothing in it is executed."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".zip", ".safetensors")
"""Endings of the names of checkpoint files."""

_MOST_BYTES = 64_000_000
_POINTER = b"version https://git-lfs"
_MOST_OPERATIONS = 2_000_000
_OWN = (
    "build the network with its own code, load the weights with torch.load(..., weights_only=True), and give it to "
    "invsolve.priors.NetworkPrior with its training table"
)
_SCRIPT = (
    "convert it to a folder, where you trust it (a .ckpt can run code): python {script} --checkpoint_path FILE --dump_path FOLDER "
    "{more}, from the folder scripts of the diffusers repository"
)
_STABLE = _SCRIPT.format(script="convert_original_stable_diffusion_to_diffusers.py", more="--to_safetensors")
_UNCONDITIONAL = (
    "convert it to a folder with conversion_ldm_uncond.py of the folder scripts of the diffusers repository, where you trust it"
)
_PICKLE = "its weights come only by running the code in it; take a model that was saved as safetensors"

_Names = Iterable[str]


def _holds(*parts: str) -> Callable[[_Names], bool]:
    """Whether each of ``parts`` is in one of the names."""
    return lambda names: all(any(part in name for name in names) for part in parts)


# (what is in the names, what the file is, what to do); the first that fits is taken.
_FAMILIES: tuple[tuple[Callable[[_Names], bool], str, str], ...] = (
    (_holds("lora_"), "a LoRA, a change to a network and none itself", "merge it into its model with diffusers (fuse_lora), and save that"),
    (
        _holds("conditioner.embedders"),
        "Stable Diffusion XL",
        "its network takes conditions that are not run here; take Stable Diffusion 1 or 2",
    ),
    (_holds("joint_blocks"), "Stable Diffusion 3", "networks in unet/ are run, transformers are not"),
    (_holds("double_blocks"), "Flux", "networks in unet/ are run, transformers are not"),
    (_holds("model.diffusion_model.", "cond_stage_model."), "CompVis' Stable Diffusion or another conditional latent diffusion", _STABLE),
    (_holds("model.diffusion_model."), "CompVis' unconditional latent diffusion", _UNCONDITIONAL),
    (_holds("time_embed.", "input_blocks."), "guided-diffusion (ADM)", _OWN),
    (_holds("all_modules."), "score_sde (NCSN++ or DDPM++)", _OWN + "; variance-exploding networks need a prior of your own (denoise)"),
    (_holds("EDMPrecond"), "EDM", _PICKLE),
    (_holds("torch_utils.persistence"), "EDM or another model of NVIDIA's", _PICKLE),
    (_holds("init_conv.", "downs."), "denoising-diffusion-pytorch", _OWN),
    (_holds("temb.dense.", "conv_in."), "the DDPM of Ho et al. in PyTorch, or DDIM", _OWN),
    (
        _holds("time_embedding.linear_1.", "down_blocks."),
        "a network of diffusers without its configuration",
        "put it in a folder unet/ beside its config.json, and scheduler_config.json in scheduler/",
    ),
    (_holds("encoder.down", "decoder.up"), "an autoencoder alone", "a network for its codes is needed, in a diffusers pipeline folder"),
)


def advice(path: Path) -> str:
    """What ``path``, a file, is, and what can be done with it: one line. Its content is parsed, and never unpickled."""
    if path.suffix.lower() not in SUFFIXES:
        return f"{path} is a file of another kind; a diffusers pipeline folder is needed"
    try:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return f"{path} is a pointer of git-lfs in the place of the weights; `git lfs pull` fetches them"
        names = set(_names(path))
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, struct.error, RecursionError) as error:
        return _untold(path, f" (it cannot be read: {' '.join(str(error).split()) or type(error).__name__})")
    if any(name.endswith(("model_index.json", "/config.json")) for name in names):
        return f"{path} is an archive of a pipeline folder; unpack it, and name the folder"
    for fits, what, remedy in _FAMILIES:
        if fits(names):
            return f"{path} is a single checkpoint file, of {what}; {remedy}"
    known = ", ".join(sorted(name for name in names if "." in name)[:3])
    held = f" (it holds {known}, ...)" if known else ""
    if path.suffix.lower() == ".pkl":
        return f"{path} is a pickle{held}, such as EDM's; {_PICKLE}"
    return _untold(path, held)


def _untold(path: Path, why: str) -> str:
    stable = f"if it is Stable Diffusion's: {_STABLE}; any other: " if path.suffix.lower() in (".ckpt", ".safetensors") else ""
    return f"{path} is a single checkpoint file of a family that is not known{why}; {stable}{_OWN}"


def _names(path: Path) -> list[str]:
    """Names of tensors and classes in a file: of safetensors, of torch's two formats, of a pickle; or of the members of an archive."""
    if path.suffix.lower() == ".safetensors":
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_BYTES:
                raise ValueError("it is damaged, or no safetensors file")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("it is damaged, or no safetensors file")
        return list(header)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return _strings(file)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        for member in members:
            if member.filename.endswith("data.pkl") and member.file_size <= _MOST_BYTES:
                with archive.open(member) as file:
                    names += _strings(file)  # type: ignore[arg-type]
    return names


def _strings(file: BinaryIO) -> list[str]:
    """The texts in a stream of pickles (torch's older format is several), up to where it is no pickle any more."""
    import io

    stream, found, count = io.BytesIO(file.read(_MOST_BYTES)), [], 0
    try:
        while stream.tell() < stream.getbuffer().nbytes and count < _MOST_OPERATIONS:
            for operation, argument, _ in pickletools.genops(stream):
                count += 1
                if isinstance(argument, str):
                    found.append(argument.replace(" ", ".") if operation.name == "GLOBAL" else argument)
                if count >= _MOST_OPERATIONS:
                    break
    except (ValueError, IndexError, struct.error, UnicodeError, OverflowError, MemoryError):
        return found  # the tensors behind the pickles, or the end of what was read
    return found
