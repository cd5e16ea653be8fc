"""Train the shipped latent prior `glyphs`: an autoencoder, then a class-conditional diffusion network on its latents.

    python scripts/train_latent_prior.py --work runs/glyphs --stage autoencoder --minutes 25             # again to continue
    python scripts/train_latent_prior.py --work runs/glyphs --stage autoencoder --minutes 10 --finish    # anneal; WORK/vae
    python scripts/train_latent_prior.py --work runs/glyphs --stage diffusion --minutes 100
    python scripts/train_latent_prior.py --work runs/glyphs --stage diffusion --minutes 15 --finish      # anneal and export

The shipped one took about these times on one CPU core; `--stage autoencoder --crop 16` or 32 begins with smaller, cheaper images.

The autoencoder is diffusers' AutoencoderKL with a weak KL term (R. Rombach et al., "High-resolution image synthesis with
latent diffusion models", CVPR 2022, section 3.1), without adversarial and perceptual losses. The network is its
UNet2DConditionModel, which attends to a few learned tokens of the class; labels are replaced by the null class at random
(J. Ho, T. Salimans, "Classifier-free diffusion guidance", 2021, algorithm 1). Objective, levels, rates and averaging are
those of scripts/train_prior.py. Data: invsolve/data/glyphs.py, rendered on the fly, none twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from train_prior import SCHEDULER, Annealed, Denoising, fit, steps_done
from training_data import TrainingGlyphs

from invsolve.data.glyphs import CLASSES, HELD_OUT_BACKGROUNDS, HELD_OUT_FACES, SIZE, TRAINING_BACKGROUNDS, TRAINING_FACES
from invsolve.data.items import EVALUATION_SEED

DEFAULTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"batch": 8, "lr": 1e-3, "channels": [32, 64, 96]},
    "diffusion": {"batch": 16, "lr": 6e-4, "channels": [96, 128]},
}
DROPOUT = 0.15
"""How often a label is replaced by the null class."""
LARGEST_BATCH = 64
"""Images set aside for each step, so that runs of any batch size see new ones."""
STATISTICS = 2048
"""Images that the latents' mean and spread are measured on."""


def build_autoencoder(channels: tuple[int, ...], latent_channels: int) -> Any:
    """A convolutional autoencoder of factor 2^(len(channels) - 1), one residual block a level, no attention."""
    from diffusers import AutoencoderKL

    depth = len(channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def build_conditional_unet(channels: tuple[int, ...], latent_channels: int, width: int) -> Any:
    """A U-Net on 16 x 16 latents that attends, to itself and to the class tokens, below the finest level."""
    from diffusers import UNet2DConditionModel

    below = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * below,
        up_block_types=("CrossAttnUpBlock2D",) * below + ("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=width,
        # diffusers reads this as the number of heads; each has 32 channels.
        attention_head_dim=tuple(c // 32 for c in channels),
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )


class AutoencoderTraining(Annealed):
    """E |x - D(z)| + (x - D(z))^2 + kl E KL(q(z | x) || N(0, 1)), z from q; means over pixels and over latent entries.

    Smaller crops, one of each image at the same random place, give more colours and edges for the same work; the end of the
    training needs whole images, as group normalisation sees the whole.
    """

    def __init__(self, channels: tuple[int, ...], latent_channels: int, kl: float, lr: float, crop: int = SIZE, warmup: int = 200):
        super().__init__()
        self.save_hyperparameters()
        self.vae = build_autoencoder(channels, latent_channels)
        # A posterior as wide as the prior would drown the first thousand steps in noise; it starts narrow.
        nn.init.constant_(self.vae.quant_conv.bias[latent_channels:], -6.0)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        top, left = torch.randint(SIZE - self.hparams["crop"] + 1, (2,)).tolist()
        x = batch[0][:, :, top : top + self.hparams["crop"], left : left + self.hparams["crop"]]
        x = x.to(memory_format=torch.channels_last)
        posterior = self.vae.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        error = self.vae.decode(z).sample.float() - x
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return error.abs().mean() + error.square().mean() + self.hparams["kl"] * divergence


class LatentTraining(Denoising):
    """The denoising objective on latents of a frozen autoencoder, given class embeddings that are learned along.

    `noise` perturbs the embeddings in training, so that the network varies smoothly around each: an embedding
    may be optimised later. The null class starts at zero, the others are N(0, 1).
    """

    # On coarse latents of unit variance the image is decided at higher levels than in pixels.
    centre, spread = math.exp(-0.4), 1.3

    def __init__(self, vae: Any, channels: tuple[int, ...], tokens: int, width: int, noise: float, lr: float, warmup: int = 300):
        super().__init__()
        self.save_hyperparameters(ignore=["vae"])
        # In a list it is no submodule: neither trained nor averaged nor saved again.
        self.frozen = [vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)]
        self.unet = build_conditional_unet(channels, vae.config.latent_channels, width)
        table = torch.randn(len(CLASSES) + 1, tokens, width)
        table[-1] = 0
        self.table = nn.Parameter(table)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, label = batch
        vae = self.frozen[0]
        with torch.no_grad():
            mean = vae.encode(x.to(memory_format=torch.channels_last)).latent_dist.mean.float()
        dropped = torch.rand(len(label), device=label.device) < DROPOUT
        embedding = self.table[torch.where(dropped, len(CLASSES), label)]
        embedding = embedding + self.hparams["noise"] * torch.randn_like(embedding)
        return self.v_loss(mean * vae.config.scaling_factor, lambda x_t, t: self.unet(x_t, t, embedding).sample)


def loader_of(args: argparse.Namespace, steps: int) -> DataLoader[Any]:
    """Training batches (images, classes), behind those of the steps already done."""
    return DataLoader(TrainingGlyphs(args.seed, steps * LARGEST_BATCH), batch_size=args.batch, num_workers=args.workers)


@torch.no_grad()
def standardise(vae: Any, seed: int) -> None:
    """Gives the latents mean zero, channel by channel, by the biases at both ends; scaling_factor becomes 1 / their spread.

    The 1 x 1 convolutions around the latent space make the shift exact: decode(encode(x)) stays the same.
    """
    loader = iter(DataLoader(TrainingGlyphs(seed), batch_size=64))
    latents = torch.cat([vae.encode(next(loader)[0]).latent_dist.mean for _ in range(STATISTICS // 64)])
    mean = latents.mean((0, 2, 3))
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.quant_conv.bias[: len(mean)] -= mean
    centred = latents - mean.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=round(1 / float(centred.square().mean().sqrt()), 4))
    spreads = centred.square().mean((0, 2, 3)).sqrt()
    print(f"spread of the latent channels {[round(float(s), 3) for s in spreads]}; scaling factor {vae.config.scaling_factor}")


def train_autoencoder(args: argparse.Namespace, work: Path) -> None:
    """Stage 1; with --finish the autoencoder goes to WORK/vae in half precision."""
    before = steps_done(work)
    torch.manual_seed(args.seed + before)
    module = AutoencoderTraining(tuple(args.channels), args.latent_channels, args.kl, args.lr, args.crop)
    module.vae.to(memory_format=torch.channels_last)
    steps = fit(module, loader_of(args, before), work, args.minutes, args.finish)
    recipe = {"objective": f"L1 + MSE + {args.kl:g} KL", **recipe_of(args, work, before, steps)}
    if args.finish:
        standardise(module.vae.eval(), args.seed)
        module.vae.to(memory_format=torch.contiguous_format).half().save_pretrained(args.work / "vae")
        (args.work / "autoencoder.json").write_text(json.dumps(recipe))
        print(f"wrote {args.work / 'vae'}; measure it with scripts/score_glyphs.py before the second stage")


def train_diffusion(args: argparse.Namespace, work: Path) -> None:
    """Stage 2, on the autoencoder in WORK/vae; with --finish everything is exported."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(args.work / "vae", torch_dtype=torch.float32)
    before = steps_done(work)
    torch.manual_seed(args.seed + before)
    module = LatentTraining(vae, tuple(args.channels), args.tokens, args.width, args.embedding_noise, args.lr)
    module.unet.to(memory_format=torch.channels_last)
    # With 64 tokens the fused attention's backward pass costs more than the products written out.
    with sdpa_kernel(SDPBackend.MATH):
        steps = fit(module, loader_of(args, before), work, args.minutes, args.finish)
    objective = f"v-prediction; {DROPOUT:.0%} of the labels dropped, embeddings perturbed by {args.embedding_noise:g}"
    recipe = {"objective": objective, **recipe_of(args, work, before, steps)}
    if args.finish:
        export(module, args.export or args.work / "export", args, recipe)


def recipe_of(args: argparse.Namespace, work: Path, before: int, steps: int) -> dict[str, Any]:
    """What the card says of a stage; the run that has just ended is added to the list in the stage's folder."""
    kept = work / "runs.json"
    runs = json.loads(kept.read_text()) if kept.exists() else []
    run = {"steps": steps - before, "batch": args.batch, "rate": args.lr}
    runs.append({**run, "crop": args.crop} if args.stage == "autoencoder" else run)
    kept.write_text(json.dumps(runs))
    return {
        "steps": steps,
        "runs": runs,
        "seed": args.seed,
        "optimiser": "AdamW, annealed linearly to zero over the last run; bf16 autocast",
    }


def export(module: LatentTraining, folder: Path, args: argparse.Namespace, recipe: dict[str, Any]) -> None:
    """Writes vae/, unet/, scheduler/, classes.safetensors, classes.json, model_index.json and card.yaml, in half precision."""
    from diffusers import AutoencoderKL, DDPMScheduler, __version__
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    unet = module.unet.to(memory_format=torch.contiguous_format).half()
    unet.save_pretrained(folder / "unet")
    vae = AutoencoderKL.from_pretrained(args.work / "vae", torch_dtype=torch.float16)
    vae.save_pretrained(folder / "vae")
    DDPMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    save_file({"embeddings": module.table.detach().half().contiguous()}, folder / "classes.safetensors")
    (folder / "classes.json").write_text(json.dumps(list(CLASSES), indent=1) + "\n", encoding="utf-8")
    index = {
        "_class_name": "ClassConditionalLatentDiffusion",
        "_diffusers_version": __version__,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    weights = sorted(folder.rglob("*.safetensors"))
    card = card_of(vae, unet, args, recipe)
    card["sha256"] = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in weights}
    OmegaConf.save(OmegaConf.create(card), folder / "card.yaml")
    print(f"wrote {folder}, {sum(p.stat().st_size for p in weights) / 2**20:.1f} MiB of weights; measure it with scripts/score_glyphs.py")


def card_of(vae: Any, unet: Any, args: argparse.Namespace, recipe: dict[str, Any]) -> dict[str, Any]:
    """The card but for the digests."""
    count = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in (("vae", vae), ("unet", unet))}
    latents, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    return {
        "summary": f"characters and symbols in colour at 64 x 64, class-conditional in a latent space; {len(CLASSES)} classes; "
        f"{count['unet']:.1f} M weights and {count['vae']:.1f} M of the autoencoder, v-prediction",
        "range": [-1, 1],
        "channels": 3,
        "sizes": f"trained on {SIZE} x {SIZE}; both sides multiples of {factor * 2 ** (len(unet.config.block_out_channels) - 1)}",
        "latent": f"{latents} channels at 1/{factor} of the side; mean 0, divided by the spread over all channels (scaling_factor)",
        "autoencoder": f"diffusers AutoencoderKL, channels {list(vae.config.block_out_channels)}, no attention",
        "network": f"diffusers UNet2DConditionModel, channels {list(unet.config.block_out_channels)}, attention below the finest level",
        "classes": f"{args.tokens} learned tokens of width {args.width} each; the last row of classes.safetensors is the null class",
        "schedule": "DDPM linear, 1000 levels, beta 1e-4 to 2e-2 (sigma/alpha 0.01 to 157)",
        "prediction_type": SCHEDULER["prediction_type"],
        "weights": "exponential moving average (0.999), float16",
        "training": {
            "script": "scripts/train_latent_prior.py, data in invsolve/data/glyphs.py",
            "data": "glyphs rendered on the fly, none of them twice in a stage",
            "faces": list(TRAINING_FACES),
            "backgrounds": list(TRAINING_BACKGROUNDS),
            "never_trained_on": {
                "faces": list(HELD_OUT_FACES),
                "backgrounds": list(HELD_OUT_BACKGROUNDS),
                "renderings": f"seed {EVALUATION_SEED} (invsolve.data.items.EVALUATION_SEED)",
                "composites": "invsolve.data.glyphs.composite",
            },
            "autoencoder": json.loads((args.work / "autoencoder.json").read_text()),
            "diffusion": recipe,
        },
        "licence": "weights: that of this project. Fonts, from matplotlib's wheel: DejaVu (Bitstream Vera licence), STIX (SIL Open "
        "Font License 1.1), Computer Modern (Blue Sky Research, free). Only their outlines were rendered; no font is contained.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of both stages' checkpoints; existing ones are continued")
    parser.add_argument("--stage", required=True, choices=sorted(DEFAULTS))
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this long (a checkpoint is kept)")
    parser.add_argument("--finish", action="store_true", help="anneal the rate to zero over this run, then write what it gave")
    parser.add_argument("--export", type=Path, default=None, help="folder to export to (default: WORK/export)")
    parser.add_argument("--channels", type=int, nargs="+", default=None, help="of the stage's network")
    parser.add_argument("--latent-channels", type=int, default=8)
    parser.add_argument("--kl", type=float, default=2e-4, help="weight of the KL term of the autoencoder")
    parser.add_argument("--crop", type=int, default=SIZE, help="side of the autoencoder's training crops; the last run needs the default")
    parser.add_argument("--tokens", type=int, default=2, help="tokens of a class")
    parser.add_argument("--width", type=int, default=64, help="width of a token")
    parser.add_argument("--embedding-noise", type=float, default=0.1, help="standard deviation added to the class embeddings")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--workers", type=int, default=0, help="processes that render (0: the one that trains)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, value in DEFAULTS[args.stage].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not 1 <= args.batch <= LARGEST_BATCH:
        parser.error(f"--batch must lie in 1 to {LARGEST_BATCH}, got {args.batch}")
    if args.crop % 4 or not 4 <= args.crop <= SIZE:
        parser.error(f"--crop must be a multiple of 4 up to {SIZE}, got {args.crop}")
    if args.finish and args.crop != SIZE:
        parser.error(f"--finish needs whole images: leave out --crop {args.crop}")
    if args.stage == "diffusion" and not (args.work / "vae").is_dir():
        parser.error(f"{args.work / 'vae'} is missing: finish --stage autoencoder first")
    {"autoencoder": train_autoencoder, "diffusion": train_diffusion}[args.stage](args, args.work / args.stage)


if __name__ == "__main__":
    main()
