"""Measure a denoising prior on the evaluation photographs (or phantoms, if it has two channels), and draw from it.

    python scripts/score_prior.py photo            # prints the table, writes samples.png beside it
    python scripts/score_prior.py runs/photo/export --card data/priors/photo/card.yaml
    python scripts/score_prior.py photo --json runs/photo_prior.json --no-draws        # run again to continue

16 fixed 64x64 crops (a 4 x 4 grid) of each evaluation photograph at full resolution get Gaussian noise of standard
deviation 0.1, 0.25, 0.5 and 1.0 in [-1, 1] units. PSNR is the mean over the 64 crops of the clipped image in [0, 1].
For a prior of two channels 16 unseen complex phantoms of 128x128 take their place, both channels brought to [0, 1].
Total variation (Chambolle) and non-local means of scikit-image run on the same noisy crops with the strength that an
oracle, which knows the truth, finds best for each noise level (non-local means: patch size too).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tables_common import PHOTOS, Kept, Row, command_line, markdown, needed, oracle, psnr
from torch import Tensor

from invsolve import Level, load_prior, sample
from invsolve.data.items import EVALUATION_SEED
from invsolve.data.phantoms import phantoms
from invsolve.resources import resource
from invsolve.samplers import Unconditional
from invsolve.schedules import DDPM
from operators.core.streams import generator

SIGMAS = (0.1, 0.25, 0.5, 1.0)


def grid_crops(size: int = 64, per_side: int = 4) -> Tensor:
    """Evenly spaced crops (16 per photograph, 3, size, size) in [-1, 1]."""
    crops = []
    for name in PHOTOS:
        image = torch.from_numpy(np.array(Image.open(resource("data", "photos", name)).convert("RGB"))).permute(2, 0, 1)
        rows = np.linspace(0, image.shape[1] - size, per_side).round().astype(int)
        columns = np.linspace(0, image.shape[2] - size, per_side).round().astype(int)
        crops += [image[:, i : i + size, j : j + size] for i in rows for j in columns]
    return torch.stack(crops).float() / 127.5 - 1


def total_variation(noisy: Tensor, weight: float) -> Tensor:
    """Chambolle's total variation denoising of each image of [-1, 1]."""
    from skimage.restoration import denoise_tv_chambolle

    out = [denoise_tv_chambolle(image, weight=weight, channel_axis=0, max_num_iter=400, eps=1e-5) for image in noisy.numpy()]
    return torch.from_numpy(np.stack(out))


def non_local_means(noisy: Tensor, sigma: float, strength: float, patch: int) -> Tensor:
    """Non-local means of each image, given the true noise level."""
    from skimage.restoration import denoise_nl_means

    def one(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return denoise_nl_means(image, patch_size=patch, patch_distance=9, h=strength * sigma, sigma=sigma, fast_mode=True, channel_axis=0)

    return torch.from_numpy(np.stack([one(image) for image in noisy.numpy()]))


def score(prior: Any, truth: Tensor, sigma: float) -> Row:
    """PSNR of the noisy images, of the prior and of what an oracle finds best, for one noise level."""
    noise = torch.stack([torch.randn(truth.shape[1:], generator=generator(0, "score", str(sigma), k)) for k in range(len(truth))])
    noisy = truth + sigma * noise
    with torch.no_grad():
        ours = psnr(torch.cat([prior.denoise(part, Level(1.0, sigma)) for part in noisy.split(16)]), truth)
    smoothed = ((f"{w:.2f}", total_variation(noisy, w)) for w in sigma * np.array([0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.6, 3.4]))
    averaged = ((f"{h:.2f}, patch {p}", non_local_means(noisy, sigma, h, p)) for h in (0.3, 0.45, 0.6, 0.8, 1.0) for p in (3, 5, 7, 9))
    (tv, tv_at, _), (nlm, nlm_at, _) = (oracle(found, lambda x: psnr(x, truth)) for found in (smoothed, averaged))
    values = {"noisy": psnr(noisy, truth), "prior": ours, "tv": tv, "nlm": nlm, "gain": ours - max(tv, nlm)}
    return {**{k: round(v, 2) for k, v in values.items()}, "tv_weight": tv_at, "nlm_h": nlm_at}


def scores(prior_name: str, kept: Kept) -> list[Row]:
    """A row for each noise level."""
    prior = load_prior(prior_name, device="cpu")
    truth = phantoms(EVALUATION_SEED, range(16)) if prior.channels == 2 else grid_crops()
    for sigma in SIGMAS:
        kept.row({"of": prior_name, "sigma": sigma}, lambda sigma=sigma: score(prior, truth, sigma))
    return card_rows(kept.rows, prior_name)


def card_rows(rows: Sequence[Row], prior_name: str) -> list[Row]:
    """The rows of all noise levels, as they stand in a card. Raises Incomplete."""
    found = [needed(rows, {"of": prior_name, "sigma": sigma}) for sigma in SIGMAS]
    return [{key: value for key, value in row.items() if key != "of"} for row in found]


def table(rows: Sequence[Row], name: str) -> str:
    """The rows as a Markdown table."""
    head = ["sigma, in [-1, 1]", "noisy", name, "total variation", "non-local means", "gain"]
    names = ("noisy", "prior", "tv", "nlm")
    return markdown(head, [[str(r["sigma"]), *(f"{r[key]:.2f}" for key in names), f"{r['gain']:+.2f}"] for r in rows])


def readme(rows: Sequence[Row]) -> str:
    """The README's table, of the prior `photo`. Raises Incomplete."""
    return table(card_rows(rows, "photo"), "photo")


def draw(prior_name: str, path: Path, steps: int = 200) -> None:
    """A grid of 8 x 3 unconditional draws at 64 x 64 and 2 at 128 x 128; 8 moduli at 128 x 128 of a complex prior."""
    prior = load_prior(prior_name, device="cpu")
    if prior.channels == 2:
        drawn = sample(Unconditional(), prior, DDPM(steps=steps), n=8, shape=(2, 128, 128), progress=False)[0]
        modulus = drawn.norm(dim=1).clamp(max=1).reshape(2, 4, 128, 128).permute(0, 2, 1, 3).reshape(256, 512)
        Image.fromarray((modulus * 255).round().byte().numpy()).save(path)
        print(f"wrote {path}")
        return
    small = sample(Unconditional(), prior, DDPM(steps=steps), n=24, shape=(3, 64, 64), progress=False)[0].clamp(-1, 1)
    large = sample(Unconditional(), prior, DDPM(steps=steps), n=2, shape=(3, 128, 128), seed=1, progress=False)[0].clamp(-1, 1)
    sheet = torch.ones(3, 192 + 8, 8 * 64 + 8 + 128)
    sheet[:, :192, :512] = small.reshape(3, 8, 3, 64, 64).permute(2, 0, 3, 1, 4).reshape(3, 192, 512)
    sheet[:, :128, 520:], sheet[:, 128 + 8 : 200, 520:] = large[0], large[1][:, :64]
    pixels = ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.NEAREST).save(path)
    print(f"wrote {path}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("prior", help="a shipped name or a diffusers folder")
    parser.add_argument("--card", type=Path, default=None, help="write the scores into this card.yaml")
    parser.add_argument("--samples", type=Path, default=None, help="where the draws go (default: samples.png beside the card, or here)")
    parser.add_argument("--no-draws", action="store_true", help="no draws from the prior, the scores alone")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    rows = scores(args.prior, Kept(args.json))
    print(table(rows, Path(args.prior).name))
    complex_valued = load_prior(args.prior, device="cpu").channels == 2
    samples = args.samples or (args.card.parent if args.card else Path()) / "samples.png"
    if not args.no_draws:
        draw(args.prior, samples)
    if args.card is not None:
        from omegaconf import OmegaConf

        card = OmegaConf.load(args.card)
        card["held_out_psnr_db"] = rows
        if not args.no_draws:
            drawn = "moduli of 8 unconditional draws" if complex_valued else "24 unconditional draws at 64 x 64 and two"
            card["samples"] = f"{samples.name}: {drawn} at 128 x 128, 200 ancestral steps"
        OmegaConf.save(card, args.card)


if __name__ == "__main__":
    main()
