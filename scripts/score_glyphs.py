"""Measure a latent prior of rendered characters on what it was never trained on, and draw from it.

    python scripts/score_glyphs.py runs/glyphs                 # after the first stage: the autoencoder in WORK/vae
    python scripts/score_glyphs.py data/priors/glyphs --card # an exported folder: into its card, samples.png beside it
    python scripts/score_glyphs.py data/priors/glyphs --json runs/glyphs.json --no-draws  # run again to continue

PSNR of decode(encode(x)), clipped, in [0, 1], mean over 256 images: new renderings in the training faces on the training
backgrounds, renderings in held-out faces on held-out backgrounds, and the three composites. The draws are made by
200 ancestral steps, a class each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tables_common import Kept, Row, command_line, needed, psnr
from torch import Tensor

from invsolve.data.glyphs import CLASSES, COMPOSITES, composite, glyphs
from invsolve.data.items import EVALUATION_SEED

COUNT = 256
SETS: dict[str, Callable[[], Tensor]] = {
    "unseen_renderings": lambda: glyphs(EVALUATION_SEED, range(COUNT))[0],
    "held_out_faces_and_backgrounds": lambda: glyphs(EVALUATION_SEED, range(COUNT), held_out=True)[0],
    "composites": lambda: torch.stack([composite(k)[0] for k in range(len(COMPOSITES))]),
}


def reconstruction(folder: Path, kept: Kept) -> dict[str, float]:
    """PSNR of the autoencoder in dB for each set of images; what is kept is not measured again."""

    @cache
    def vae() -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()

    for name, images in SETS.items():
        kept.row(key_of(folder.as_posix(), name), lambda images=images: score(vae(), images()))
    return card_rows(kept.rows, folder.as_posix())


def key_of(folder: str, name: str) -> Row:
    """What tells the row of a set from the others."""
    return {"of": folder, "set": name}


@torch.no_grad()
def score(vae: Any, x: Tensor) -> Row:
    """PSNR of decode(encode(x)) in dB, and the number of images."""
    return {"images": len(x), "psnr": round(psnr(torch.cat([rebuilt(vae, part) for part in x.split(32)]), x), 2)}


def card_rows(rows: Sequence[Row], folder: str) -> dict[str, float]:
    """The PSNR of each set of images, as they stand in a card. Raises Incomplete."""
    return {name: float(needed(rows, key_of(folder, name))["psnr"]) for name in SETS}


def rebuilt(vae: Any, x: Tensor) -> Tensor:
    return vae.decode(vae.encode(x).latent_dist.mean).sample


def sheet_of(images: Tensor, columns: int) -> Tensor:
    """Images (B, 3, H, W) as one sheet with `columns` to a row, white where there is none left."""
    b, c, h, w = images.shape
    rows = -(-b // columns)
    filled = torch.cat([images, torch.ones(rows * columns - b, c, h, w)])
    return filled.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


@torch.no_grad()
def draw(folder: Path, path: Path, steps: int = 200, guidance: float = 1.0) -> None:
    """A draw of every class, then 16 of the null class, by ancestral sampling (DDPM) with float32 weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import load_file

    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    table = load_file(folder / "classes.safetensors")["embeddings"].float()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(steps)
    labels = torch.cat([torch.arange(len(CLASSES)), torch.full((16,), len(CLASSES))])
    embedding, null = table[labels], table[-1:].expand(len(labels), -1, -1)
    rng = torch.Generator().manual_seed(0)
    side = unet.config.sample_size
    z = torch.randn(len(labels), unet.config.in_channels, side, side, generator=rng)
    for t in scheduler.timesteps:
        v = unet(z, t, embedding).sample
        if guidance != 1:
            plain = unet(z, t, null).sample
            v = plain + guidance * (v - plain)
        z = scheduler.step(v, t, z, generator=rng).prev_sample
    images = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
    pixels = ((sheet_of(images, 16) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
    print(f"wrote {path}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, help="an exported prior, or a work folder with vae/")
    parser.add_argument("--card", action="store_true", help="write the scores into the folder's card.yaml")
    parser.add_argument("--guidance", type=float, default=1.0, help="weight of the classifier-free guidance of the draws")
    parser.add_argument("--samples", type=Path, default=None, help="where the draws go (default: samples.png in the folder)")
    parser.add_argument("--no-draws", action="store_true", help="no draws from the prior, the scores alone")
    args = parser.parse_args()
    scores = reconstruction(args.folder, Kept(args.json))
    print("  ".join(f"{name} {value} dB" for name, value in scores.items()))
    drawn = (args.folder / "unet").is_dir() and not args.no_draws
    if drawn:
        samples = args.samples or args.folder / "samples.png"
        draw(args.folder, samples, guidance=args.guidance)
    if args.card:
        from omegaconf import OmegaConf

        card: Any = OmegaConf.load(args.folder / "card.yaml")
        card["reconstruction_psnr_db"] = scores
        if drawn:
            card["samples"] = (
                f"samples.png: a draw of each class in the order of classes.json, then 16 of the null class; guidance {args.guidance:g}"
            )
        OmegaConf.save(card, args.folder / "card.yaml")


if __name__ == "__main__":
    main()
