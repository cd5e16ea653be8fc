"""From a prompt to the embedding that a conditional network takes: CLIP's text encoder, or a table of classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.priors.checkpoints.weights import check_values, read_json, read_tensors, weights_file
from invsolve.priors.network import revive


class TextEmbedder:
    """A text as the last hidden states of a CLIP text model, (tokens, width): what Stable Diffusion 1 and 2 are conditioned on.

    Args:
        tokenizer, encoder: a CLIPTokenizer and a CLIPTextModel of transformers.

    Texts are padded to the full number of tokens, as in training. The null embedding is that of the empty text.
    """

    def __init__(self, tokenizer: Any, encoder: Any):
        self.tokenizer, self.encoder = tokenizer, revive(encoder).eval().requires_grad_(False)
        self.tokens = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))

    @property
    def null(self) -> Tensor:
        """The embedding of the empty text."""
        return self("")

    def __call__(self, prompt: Any) -> Tensor:
        """(tokens, width). Raises TypeError for what is no text, and ValueError for one of too many tokens."""
        if not isinstance(prompt, str):
            raise TypeError(f"prompt={prompt!r}; this prior takes a text")
        tokens = self.tokenizer(prompt, padding="max_length", max_length=self.tokens, return_tensors="pt")
        count = tokens.input_ids.shape[1]
        if count > self.tokens:
            raise ValueError(f"the prompt has {count} tokens, with those of start and end; at most {self.tokens} are taken")
        device = next(self.encoder.parameters()).device
        mask = tokens.attention_mask.to(device) if getattr(self.encoder.config, "use_attention_mask", False) else None
        with torch.inference_mode(False), torch.no_grad():
            hidden: Tensor = self.encoder(tokens.input_ids.to(device), attention_mask=mask)[0][0]
        return hidden

    def to(self, device: torch.device | str) -> TextEmbedder:
        """Moves the encoder, and returns the embedder."""
        self.encoder.to(device)
        return self


class ClassEmbedder:
    """A class as a row of a table of embeddings.

    Args:
        table: (classes + 1, tokens, width); the last row is the null embedding.
        names: of the classes, all different.
    """

    def __init__(self, table: Tensor, names: Sequence[str]):
        if table.ndim != 3 or len(table) != len(names) + 1:
            raise ValueError(
                f"embeddings of shape {tuple(table.shape)} for {len(names)} classes; ({len(names) + 1}, tokens, width) is needed, "
                "with the null embedding as the last row"
            )
        if len(set(names)) != len(names):
            raise ValueError("two classes have the same name")
        with torch.inference_mode(False):
            self.table, self.names = table.detach().clone(), tuple(names)

    @property
    def null(self) -> Tensor:
        """The last row of the table."""
        return self.table[-1]

    def __call__(self, prompt: Any) -> Tensor:
        """(tokens, width) of a class by its name, or by its index. Raises ValueError for an unknown one, or if both may be meant."""
        if isinstance(prompt, str):
            if prompt not in self.names:
                few = ", ".join(self.names[:100]) + (", ..." if len(self.names) > 100 else "")
                raise ValueError(f"prompt={prompt!r} is no class of this prior; there are {len(self.names)}: {few or 'none'}")
            return self.table[self.names.index(prompt)]
        if isinstance(prompt, bool) or not isinstance(prompt, int):
            raise TypeError(f"prompt={prompt!r}; the name of a class, or its index, is needed")
        if not 0 <= prompt < len(self.names):
            raise ValueError(f"prompt={prompt}; the index of a class, 0 to {len(self.names) - 1}, is needed")
        if self.names[prompt] != str(prompt) and str(prompt) in self.names:
            name = self.names[prompt]
            raise ValueError(f"prompt={prompt} is the index of class {name!r}, and the name of another; write {name!r} or {str(prompt)!r}")
        return self.table[prompt]

    def to(self, device: torch.device | str) -> ClassEmbedder:
        """Moves the table, and returns the embedder."""
        self.table = self.table.to(device)
        return self


Embedder = TextEmbedder | ClassEmbedder


def load_embedder(folder: Path) -> Embedder:
    """The embedder of a pipeline folder: classes.safetensors with classes.json where they are there, else text_encoder/.

    A table of the null embedding alone (classes.json is an empty list) makes a text-conditional pipeline usable without its
    text encoder. Raises FileNotFoundError if there is neither, ImportError if a text encoder cannot be run because
    transformers is not installed, and ValueError for files that do not fit.
    """
    if (folder / "classes.safetensors").exists():
        return _load_classes(folder)
    if (folder / "text_encoder").is_dir():
        return _load_text(folder)
    raise FileNotFoundError(
        f"{folder} holds a conditional network, but no condition for it: text_encoder/ with tokenizer/, or classes.safetensors "
        "with classes.json, is needed"
    )


def _load_classes(folder: Path) -> ClassEmbedder:
    path, listed = folder / "classes.safetensors", folder / "classes.json"
    if not listed.exists():
        raise FileNotFoundError(f"{listed} is missing; without it the classes have no names")
    names = json.loads(listed.read_text())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{listed} must hold a list of names")
    tensors = read_tensors(path)
    if list(tensors) != ["embeddings"]:
        raise ValueError(f"{path} holds {', '.join(tensors) or 'nothing'}; one tensor, embeddings, is needed")
    try:
        return ClassEmbedder(tensors["embeddings"].float(), names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_text(folder: Path) -> TextEmbedder:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(
            f"{folder / 'text_encoder'} needs transformers: pip install 'invsolve[text]'; or put the null embedding alone into "
            "classes.safetensors, beside an empty list in classes.json"
        ) from error
    part = folder / "text_encoder"
    config = read_json(part / "config.json", "without it the text encoder cannot be built")
    kind = config.get("model_type")
    if kind != "clip_text_model" or not (folder / "tokenizer").is_dir():
        what = "without tokenizer/" if kind == "clip_text_model" else f"of type {kind!r}"
        raise ValueError(f"{part} is a text encoder {what}; a CLIPTextModel with its tokenizer/ is needed")
    path = weights_file(part, "model")
    variant = "fp16" if path.name.endswith(".fp16.safetensors") else None
    # transformers knows under which names its weights were saved over the years; its report on them is made an error here.
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        encoder, report = CLIPTextModel.from_pretrained(
            part, local_files_only=True, use_safetensors=True, variant=variant, torch_dtype=torch.float32, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its config.json: {' '.join(str(error).split())}") from error
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
    for key, what in (("missing_keys", "are missing"), ("unexpected_keys", "are unknown"), ("mismatched_keys", "have another shape")):
        if report[key]:
            raise ValueError(f"{path} does not fit its config.json: {len(report[key])} weights {what}, such as {sorted(report[key])[0]}")
    check_values(dict(encoder.named_parameters()), path)
    return TextEmbedder(tokenizer, encoder)
