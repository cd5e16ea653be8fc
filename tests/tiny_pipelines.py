"""Small pipelines of diffusers with random weights, saved as the published ones are."""

from __future__ import annotations

import json

import torch

SIDE = 16  # of an image; codes are 4 x 8 x 8
LABELS = ["disc", "ring", "7"]
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


def seeded(make, seed=0):
    """The module made with a seed of its own, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def unet(conditional=True, channels=4, width=12, **options):
    from diffusers import UNet2DConditionModel, UNet2DModel

    common = {"sample_size": 8, "in_channels": channels, "out_channels": channels, "layers_per_block": 1, "norm_num_groups": 4}
    common |= {"block_out_channels": (8, 16), "attention_head_dim": 4, **options}
    if not conditional:
        blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        return seeded(lambda: UNet2DModel(**common, **blocks))
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return seeded(lambda: UNet2DConditionModel(**common, **blocks, cross_attention_dim=width))


def vae(channels=4, **options):
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    common = {"block_out_channels": (8, 16), "latent_channels": channels, "norm_num_groups": 4, "sample_size": SIDE, **options}
    return seeded(lambda: AutoencoderKL(**blocks, **common), 1)


def vqvae(channels=3, **options):
    from diffusers import VQModel

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    common = {"block_out_channels": (8, 16), "latent_channels": channels, "norm_num_groups": 4, "num_vq_embeddings": 32, **options}
    model = seeded(lambda: VQModel(**blocks, **common), 2)
    # Codebook entries as far apart as codes are; the initial ones lie within 1/32 of zero.
    model.quantize.embedding.weight.data.mul_(16)
    return model


def tokenizer(folder):
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), CLIP_START, CLIP_END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": CLIP_END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(width=12):
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"vocab_size": 54, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(**sizes, max_position_embeddings=77, bos_token_id=52, eos_token_id=53, pad_token_id=53)
    return seeded(lambda: CLIPTextModel(config), 3)


def save_stable_diffusion(folder, prediction="epsilon", scheduler=None):
    """As runwayml/stable-diffusion-v1-5 (PNDM, epsilon), or as stable-diffusion-2 (DDIM, v_prediction)."""
    from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

    levels = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2, "steps_offset": 1}
    if scheduler is None and prediction == "epsilon":
        scheduler = PNDMScheduler(**levels, skip_prk_steps=True, set_alpha_to_one=False)
    elif scheduler is None:
        scheduler = DDIMScheduler(**levels, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction)
    pipe = StableDiffusionPipeline(
        vae=vae(scaling_factor=0.7, shift_factor=0.1),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "tmp"),
        unet=unet(use_linear_projection=prediction != "epsilon"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return pipe


def save_latent_diffusion(folder):
    """As CompVis/ldm-celebahq-256: a VQ autoencoder and an unconditional network."""
    from diffusers import DDIMScheduler, LDMPipeline

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    pipe = LDMPipeline(vqvae=vqvae(), unet=unet(conditional=False, channels=3), scheduler=scheduler)
    pipe.save_pretrained(folder)
    return pipe


def save_class_conditional(folder, scheduler=None):
    """As the shipped latent prior: a table of class embeddings in place of the text encoder."""
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    parts = {"unet": unet(), "vae": vae(), "scheduler": scheduler or DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False)}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    table = torch.randn(len(LABELS) + 1, 2, 12, generator=torch.Generator().manual_seed(4))
    save_file({"embeddings": table}, folder / "classes.safetensors")
    (folder / "classes.json").write_text(json.dumps(LABELS))
    return parts, table
