"""Train the shipped priors: `photo`, colour images, and `phantom`, complex MRI phantoms; any size that is a multiple of 8.

    python scripts/train_prior.py --work runs/photo --minutes 60             # train; run again to continue
    python scripts/train_prior.py --work runs/photo --minutes 10 --finish    # anneal the rate to zero, then export
    python scripts/train_prior.py --work runs/mine --images ~/my-photos      # the user's own folder of images
    python scripts/train_prior.py --data phantom --work runs/phantom --size 128 --channels 24 48 96 96 --batch 8

The network is diffusers' UNet2DModel with v-prediction (T. Salimans, J. Ho, "Progressive distillation for fast
sampling of diffusion models", ICLR 2022, section 4) on the DDPM linear schedule with 1000 levels. The rate is held
constant and annealed linearly to zero over the last run (`--finish`), so that pieces of any length add up.
The exported weights are the exponential moving average in half precision, in diffusers' folder format.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from training_data import EVALUATION_PHOTOS, TrainingImages, TrainingPhantoms, training_photo_paths

from invsolve.data.items import EVALUATION_SEED

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


IMAGE_CHANNELS = {"photo": 3, "phantom": 2}


def build_unet(channels: tuple[int, ...], image_channels: int = 3, size: int = 64) -> Any:
    """A convolutional U-Net (no attention, hence free in size); the sides must be multiples of 2^(len(channels) - 1)."""
    from diffusers import UNet2DModel

    depth = len(channels)
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        add_attention=False,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )


class Annealed(LightningModule):
    """AdamW at a constant rate after a short warm-up, annealed linearly to zero over `finish_s` seconds where that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.finish_s: float | None = None
        self.started = time.monotonic()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        scale = min(1.0, (self.global_step + 1) / self.hparams["warmup"])
        if self.finish_s is not None:
            scale *= max(0.0, 1 - (time.monotonic() - self.started) / self.finish_s)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.hparams["lr"] * scale
        super().optimizer_step(*args, **kwargs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], betas=(0.9, 0.99), weight_decay=1e-3)


class Denoising(Annealed):
    """Denoising objective E ||v_theta(x_t, t) - (alpha z - sigma x_0)||^2.

    Levels are drawn continuously, stratified over the batch: 80 % with a log-normal sigma/alpha around `centre` (where the
    image is decided and where it is refined), 20 % uniform over the training table (which holds the noisiest levels).
    """

    centre, spread = math.exp(-0.9), 1.3

    def __init__(self) -> None:
        super().__init__()
        betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, 0)
        self.register_buffer("log_ratio", (0.5 * torch.log((1 - alpha_bar) / alpha_bar)).float(), persistent=False)

    def levels(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Fractional network times and (alpha, sigma), each (batch,)."""
        u = (torch.rand(()) + torch.arange(batch) / batch) % 1
        u = u[torch.randperm(batch)].to(self.device)
        log_normal = math.log(self.centre) + self.spread * math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-0.9999, 0.9999))
        table: Tensor = self.log_ratio
        uniform = torch.rand(batch, device=self.device) * 999
        low = uniform.floor().long().clamp(max=998)
        along = table[low] + (uniform - low) * (table[low + 1] - table[low])
        ratio = torch.where(torch.rand(batch, device=self.device) < 0.2, along, log_normal).clamp(float(table[0]), float(table[-1]))
        k = torch.searchsorted(table, ratio).clamp(1, 999)
        t = (k - 1) + (ratio - table[k - 1]) / (table[k] - table[k - 1])
        alpha = torch.sigmoid(-2 * ratio).sqrt()
        return t, alpha, torch.sigmoid(2 * ratio).sqrt()

    def v_loss(self, x0: Tensor, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The objective for clean signals (B, C, H, W), one level each; `network(x_t, t)` predicts v."""
        t, alpha, sigma = self.levels(len(x0))
        alpha, sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        z = torch.randn_like(x0)
        x_t = (alpha * x0 + sigma * z).to(memory_format=torch.channels_last)
        return (network(x_t, t).float() - (alpha * z - sigma * x0)).square().mean()


class DiffusionTraining(Denoising):
    """The objective in pixel space; photographs are augmented by kornia."""

    def __init__(self, channels: tuple[int, ...], lr: float, warmup: int = 300, data: str = "photo", size: int = 64):
        super().__init__()
        self.save_hyperparameters()
        self.unet = build_unet(channels, IMAGE_CHANNELS[data], size)
        self.augment: Any = None
        if data != "photo":
            return  # phantoms come with all their variety
        from kornia.augmentation import AugmentationSequential, ColorJitter, RandomGrayscale

        # kornia's colour operations live in [0, 1]; the images come and go in [-1, 1].
        self.augment = AugmentationSequential(
            ColorJitter(0.12, (0.8, 1.2), (0.6, 1.4), 0.04, p=0.4),
            RandomGrayscale(p=0.05),
            same_on_batch=False,
        )

    def training_step(self, x0: Tensor, index: int) -> Tensor:
        if self.augment is not None:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                x0 = self.augment((x0 + 1) / 2).clamp(0, 1) * 2 - 1
        loss = self.v_loss(x0, lambda x_t, t: self.unet(x_t, t).sample)
        self.log("loss", loss, prog_bar=False)
        return loss


class Progress(Callback):
    """Prints a line every 200 steps, saves `last` every 1000, and stops after the allotted minutes."""

    def __init__(self, minutes: float, last: Path):
        self.minutes, self.last, self.mean = minutes, last, 0.0
        self.started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Tensor, index: int) -> None:
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {trainer.global_step}")
        self.mean = loss if index == 0 else 0.995 * self.mean + 0.005 * loss
        minutes = (time.monotonic() - self.started) / 60
        if trainer.global_step % 200 == 0:
            print(f"step {trainer.global_step}  {minutes:.1f} min  loss {self.mean:.4f}", flush=True)
        done = minutes >= self.minutes
        if done or trainer.global_step % 1000 == 0:
            # Here, not after fit(): by then the averaged weights have replaced the raw ones that training continues from.
            trainer.save_checkpoint(self.last)
        trainer.should_stop = done


def steps_done(work: Path) -> int:
    """Steps of the checkpoint in a work folder, 0 without one."""
    last = work / "last.ckpt"
    return int(torch.load(last, weights_only=True)["global_step"]) if last.exists() else 0


def fit(module: Annealed, loader: DataLoader[Any], work: Path, minutes: float, finish: bool) -> int:
    """Trains, from the checkpoint in `work` if there is one, and leaves the averaged weights in the module; the steps in all."""
    last = work / "last.ckpt"
    module.finish_s = minutes * 60 if finish else None
    trainer = Trainer(
        default_root_dir=work,
        max_epochs=-1,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[
            Progress(minutes, last),
            EMAWeightAveraging(decay=0.999),
        ],
    )
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
    return trainer.global_step


def export(module: DiffusionTraining, folder: Path, recipe: dict[str, Any]) -> None:
    """Writes the half-precision weights, both configurations and a card as a diffusers pipeline folder."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from omegaconf import OmegaConf

    pipeline = DDPMPipeline(module.unet.half(), DDPMScheduler(**SCHEDULER))
    pipeline.save_pretrained(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    count, channels = sum(p.numel() for p in module.unet.parameters()), list(module.unet.config.block_out_channels)
    subject = {
        "photo": ("colour images", "crops"),
        "phantom": ("complex brain-like phantoms, channels real and imaginary part", "phantoms"),
    }
    images, pieces = subject[module.hparams["data"]]
    card = {
        "summary": f"{images}, at any size that is a multiple of {2 ** (len(channels) - 1)}; {count / 1e6:.1f} M weights",
        "range": [-1, 1],
        "channels": module.unet.config.in_channels,
        "sizes": f"both sides multiples of {2 ** (len(channels) - 1)}; trained on {recipe['crop']} x {recipe['crop']} {pieces}",
        "network": f"diffusers UNet2DModel, channels {channels}, one residual block a level, no attention (fully convolutional)",
        "schedule": "DDPM linear, 1000 levels, beta 1e-4 to 2e-2 (sigma/alpha 0.01 to 157)",
        "prediction_type": SCHEDULER["prediction_type"],
        "weights": "exponential moving average (0.999), float16",
        "training": recipe,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    OmegaConf.save(OmegaConf.create(card), folder / "card.yaml")
    print(f"wrote {folder}; measure it with scripts/score_prior.py before it is used")


def recipe_of(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """What the card says of the training."""
    common = {
        "crop": args.size,
        "steps": steps,
        "batch": args.batch,
        "images_seen": steps * args.batch,
        "optimiser": f"AdamW, rate {args.lr:g}, annealed linearly to zero over the last run; bf16 autocast",
    }
    if args.data == "phantom":
        return {
            "script": "scripts/train_prior.py --data phantom, data in invsolve/data/phantoms.py",
            "data": f"phantoms synthesised on the fly, seed {args.seed}, none of them twice; magnitude at most 1",
            "never_trained_on": f"phantoms of seed {EVALUATION_SEED} (invsolve.data.items.EVALUATION_SEED)",
            "augmentation": "none",
            **common,
        }
    return {
        "script": "scripts/train_prior.py, data in scripts/training_data.py",
        "data": f"dead leaves synthesised on the fly ({args.leaves:.0%}); the rest crops of the photographs at several scales",
        "photographs": [p.name for p in training_photo_paths(args.images)] if args.images is None else "the user's own",
        "never_trained_on": list(EVALUATION_PHOTOS),
        "augmentation": "orientations, two-colour tints of grey crops, and kornia's colour jitter and grey",
        **common,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint; an existing one is continued")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this long (a checkpoint is kept)")
    parser.add_argument("--finish", action="store_true", help="anneal the rate to zero over this run and export")
    parser.add_argument("--export", type=Path, default=None, help="folder to export to (default: WORK/export)")
    parser.add_argument("--data", default="photo", choices=sorted(IMAGE_CHANNELS), help="photographs, or complex MRI phantoms")
    parser.add_argument("--images", type=Path, default=None, help="a folder of your own images in place of the shipped photographs")
    parser.add_argument("--leaves", type=float, default=0.35, help="share of dead-leaves images")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 128])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data == "phantom" and args.images is not None:
        parser.error("--images belongs to --data photo")

    epoch = steps_done(args.work)
    torch.manual_seed(args.seed + epoch)
    module = DiffusionTraining(tuple(args.channels), args.lr, data=args.data, size=args.size)
    images: IterableDataset[torch.Tensor] = (
        TrainingImages(args.size, args.leaves, args.images, args.seed, epoch)
        if args.data == "photo"
        else TrainingPhantoms(args.size, args.seed, epoch * args.batch)
    )
    loader = DataLoader(images, batch_size=args.batch, num_workers=args.workers, pin_memory=torch.cuda.is_available())
    module.unet.to(memory_format=torch.channels_last)
    steps = fit(module, loader, args.work, args.minutes, args.finish)
    if args.finish:
        export(module, args.export or args.work / "export", recipe_of(args, steps))


if __name__ == "__main__":
    main()
