"""Train the prior of photographs: a U-Net behind a pixel-unshuffle by two, on a folder of photographs, in pieces of any length.

    python scripts/train_photographs.py --images FOLDER --work runs/photographs                # until stopped; run again to continue
    python scripts/train_photographs.py --images FOLDER --work runs/photographs --minutes 60   # one hour of it
    python scripts/train_photographs.py --images FOLDER --work runs/photographs --minutes 90 --finish   # anneal the rate, then export
    python scripts/train_photographs.py --images FOLDER --work runs/photographs --export runs/now       # the best so far, as a prior
    python scripts/train_photographs.py --images FOLDER --work runs/photographs --score photo           # another prior, the same crops

Objective and noise levels are those of scripts/train_prior.py. The rate is constant after a warm-up, and two exponential moving
averages of the weights are kept; `--finish` works on a copy and lets its rate fall linearly to zero over the minutes given. Some
photographs of the folder are held out (scripts/training_photographs.py): the averages are scored on them now and then, and what
scored best is exported. Step n draws its images and its noise from (seed, n), so that pieces add up to one run.

In WORK: last.pt (all that training continues from; of --finish finish.pt), best.safetensors (the average that scored best),
log.jsonl (a line for each score, and for the loss in between), and the cache of images.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tables_common import psnr
from torch import Tensor
from torch.utils.data import DataLoader
from train_prior import SCHEDULER, Denoising, build_unet
from training_photographs import Batches, Crops, Pyramids, held_out_crops

from invsolve import Level, load_prior
from invsolve.atomic import replacing
from invsolve.priors import NetworkPrior, TrainingTable
from invsolve.priors.checkpoints.diffusers import UNSHUFFLE
from invsolve.priors.network import Unshuffled
from invsolve.schedules import alpha_bars
from operators.core.streams import generator

SIGMAS = {"15/255": 30 / 255, "25/255": 50 / 255, "50/255": 100 / 255, "75/255": 150 / 255, "0.5": 0.5, "1.0": 1.0}
"""Noise levels of the scores in [-1, 1] units, by name: n/255 for pixels in [0, 1], the others as they are."""
DECAYS = (0.999, 0.9998)
"""Of the averages of the weights: over about one thousand and five thousand steps."""
SAVE_S, SCORE_S, LOSS_STEPS = 240.0, 1200.0, 200
FACTOR = 2


class Photographs(Denoising):
    """The objective, for a network behind a pixel-unshuffle; images are (B, 3, H, W) in [-1, 1]."""

    def __init__(self, channels: tuple[int, ...], size: int) -> None:
        super().__init__()
        self.unet = build_unet(channels, 3 * FACTOR**2, size // FACTOR).to(memory_format=torch.channels_last)
        self.network = Unshuffled(self.unet, FACTOR)


class Run:
    """A training run: network, optimiser, averages, and how far it is.

    Args:
        settings: what the run is (channels, batch, size, lr, leaves, seed, warmup); a checkpoint must state the same.
        work: its folder.
        finish: seconds over which the rate falls to zero, in a checkpoint of its own; 0 leaves it constant.
        device: where it is trained; on a GPU under bf16 autocast.
    """

    def __init__(self, settings: dict[str, Any], work: Path, finish: float = 0.0, device: torch.device | str = "cpu") -> None:
        self.settings, self.work, self.finish, self.device = settings, work, finish, torch.device(device)
        torch.manual_seed(settings["seed"])
        self.module = Photographs(tuple(settings["channels"]), settings["size"]).train().to(self.device)
        self.weights = dict(self.module.unet.named_parameters())
        self.averages = [{name: p.detach().clone() for name, p in self.weights.items()} for _ in DECAYS]
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=settings["lr"], betas=(0.9, 0.99), weight_decay=1e-3)
        self.step, self.seconds, self.finishing, self.best = 0, 0.0, 0.0, -math.inf
        self.file = work / ("finish.pt" if finish else "last.pt")
        start = self.file if self.file.exists() else work / "last.pt"
        if start.exists():
            self._load(start)

    def _load(self, path: Path) -> None:
        kept = torch.load(path, weights_only=True, map_location=self.device)
        other = [f"{key}={kept['settings'].get(key)!r}" for key, value in self.settings.items() if kept["settings"].get(key) != value]
        if other:
            raise ValueError(f"{path} was trained with {', '.join(other)}; give the same, or another --work")
        self.module.unet.load_state_dict(kept["weights"])
        self.averages = kept["averages"]
        self.optimiser.load_state_dict(kept["optimiser"])
        self.step, self.seconds, self.finishing, self.best = (kept[key] for key in ("step", "seconds", "finishing", "best"))

    def save(self) -> None:
        """Writes the checkpoint; an older one is there until the new one is whole."""
        progress = {"step": self.step, "seconds": self.seconds, "finishing": self.finishing, "best": self.best}
        state = {"settings": self.settings, "weights": self.module.unet.state_dict(), "averages": self.averages}
        with replacing(self.file) as temporary:
            torch.save({**state, **progress, "optimiser": self.optimiser.state_dict()}, temporary)

    def log(self, **values: Any) -> None:
        """Appends a line to log.jsonl and prints it."""
        line = json.dumps({"step": self.step, "hours": round(self.seconds / 3600, 3), **values})
        with (self.work / "log.jsonl").open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    @property
    def annealed(self) -> bool:
        """Whether the rate has fallen to zero."""
        return bool(self.finish) and self.finishing >= self.finish

    def count(self, seconds: float) -> None:
        """Time that was trained."""
        self.seconds += seconds
        self.finishing += seconds if self.finish else 0.0

    def advance(self, batch: Tensor) -> float:
        """One step on clean images (B, 3, H, W); its loss. Raises FloatingPointError where that is not finite."""
        torch.manual_seed(generator(self.settings["seed"], "photographs", self.step).initial_seed())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.module.v_loss(batch.to(self.device, non_blocking=True), lambda x, t: self.module.network(x, t)[0])
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step}; the checkpoint before it is kept")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        left = max(0.0, 1 - self.finishing / self.finish) if self.finish else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings["lr"] * min(1.0, (self.step + 1) / self.settings["warmup"]) * left
        self.optimiser.step()
        self.step += 1
        for decay, average in zip(DECAYS, self.averages, strict=True):
            # Young averages forget their start.
            share = 1 - min(decay, self.step / (self.step + 10))
            for name, mean in average.items():
                mean.lerp_(self.weights[name].detach(), share)
        return value

    def score(self, truth: Tensor) -> None:
        """Logs the PSNR of the averages on the held-out crops, and keeps the better one if it is the best so far."""
        for decay, average in zip(DECAYS, self.averages, strict=True):
            # Young averages are the same whatever their decay, see `advance`, and a score takes half a minute.
            if decay != DECAYS[0] and all(torch.equal(value, self.averages[0][name]) for name, value in average.items()):
                continue
            unet = copy.deepcopy(self.module.unet)
            unet.load_state_dict(average)
            table = TrainingTable.from_alpha_bars(alpha_bars(SCHEDULER["beta_start"], SCHEDULER["beta_end"], 1000))
            prior = NetworkPrior(Unshuffled(unet, FACTOR), table, "v_prediction", call=lambda net, x, t: net(x, t)[0], channels_last=True)
            found = scores(prior, truth)
            mean = sum(found.values()) / len(found)
            self.log(average=decay, psnr=found, mean=round(mean, 3))
            if mean > self.best:
                self.best = mean
                with replacing(self.work / "best.safetensors") as temporary:
                    facts = {"step": str(self.step), "decay": str(decay), "psnr": json.dumps(found)}
                    save_file({name: value.contiguous() for name, value in average.items()}, temporary, facts)


def scores(prior: Any, truth: Tensor) -> dict[str, float]:
    """PSNR in dB of a prior on clean crops with Gaussian noise, by the name of the level."""
    found = {}
    for name, sigma in SIGMAS.items():
        drawn = [torch.randn(truth.shape[1:], generator=generator(0, "held out", name, k)) for k in range(len(truth))]
        noise = torch.stack(drawn).to(truth.device)
        with torch.inference_mode():
            denoised = [prior.denoise(part, Level(1.0, sigma)) for part in (truth + sigma * noise).split(4)]
        found[name] = round(psnr(torch.cat(denoised), truth), 3)
    return found


def train(run: Run, pyramids: Pyramids, minutes: float, workers: int = 0) -> None:
    """Steps until the minutes are over, the rate is zero, or SIGTERM or SIGINT comes; leaves a checkpoint in any case."""
    crops = Crops(pyramids, run.settings["batch"], run.settings["size"], run.settings["leaves"])
    batches = Batches(crops, run.settings["seed"], run.step)
    loader = DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=run.device.type == "cuda")
    truth = held_out_crops(pyramids).to(run.device)
    stops: list[int] = []
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda number, frame: stops.append(number))
    began = saved = scored = last = time.monotonic()
    losses: list[float] = []
    for batch in loader:
        losses.append(run.advance(batch))
        now = time.monotonic()
        run.count(now - last)
        last = now
        done = bool(stops) or now - began >= 60 * minutes or run.annealed
        if run.step % LOSS_STEPS == 0:
            run.log(loss=round(sum(losses) / len(losses), 5))
            losses.clear()
        # A signal does not wait for scores, the end of a piece does.
        if (now - scored >= SCORE_S or done) and not stops:
            run.score(truth)
            scored = last = time.monotonic()
        if now - saved >= SAVE_S or done:
            run.save()
            saved = last = time.monotonic()
        if done:
            return


def export(run: Run, pyramids: Pyramids, folder: Path) -> None:
    """Writes the best average in half precision, configurations and card as a diffusers pipeline folder.

    Raises FileExistsError for a folder that is there, and FileNotFoundError if no score was taken yet.
    """
    from diffusers import DDPMPipeline, DDPMScheduler
    from omegaconf import OmegaConf
    from safetensors import safe_open

    best = run.work / "best.safetensors"
    if folder.exists():
        raise FileExistsError(f"{folder} exists and is left alone; name another folder")
    if not best.exists():
        raise FileNotFoundError(f"{best} is missing: nothing was scored yet; train on")
    unet = copy.deepcopy(run.module.unet)
    unet.load_state_dict(load_file(best))
    with safe_open(best, "pt") as stream:
        facts = stream.metadata()
    DDPMPipeline(unet.half(), DDPMScheduler(**SCHEDULER)).save_pretrained(folder)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), UNSHUFFLE: FACTOR}, indent=2, sort_keys=True) + "\n")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    channels, size = run.settings["channels"], run.settings["size"]
    multiple, count = FACTOR * 2 ** (len(channels) - 1), sum(p.numel() for p in unet.parameters())
    card = {
        "summary": f"colour photographs at any size that is a multiple of {multiple}; {count / 1e6:.1f} M weights, v-prediction",
        "range": [-1, 1],
        "channels": 3,
        "sizes": f"both sides multiples of {multiple}; trained on {size} x {size} crops",
        "network": f"diffusers UNet2DModel behind a pixel-unshuffle by {FACTOR}, channels {channels}, one residual block a level, "
        "no attention (fully convolutional)",
        "schedule": "DDPM linear, 1000 levels, beta 1e-4 to 2e-2 (sigma/alpha 0.01 to 157)",
        "prediction_type": SCHEDULER["prediction_type"],
        "weights": f"exponential moving average ({facts['decay']}) at step {facts['step']}, float16",
        "training": {
            "script": "scripts/train_photographs.py, data in scripts/training_photographs.py",
            "photographs": [path.name for path in pyramids.paths if path.name not in pyramids.held_out],
            "held_out": pyramids.held_out,
            "held_out_psnr_db": json.loads(facts["psnr"]),
            "augmentation": "scales 1 to 0.2, orientations, colours, grey",
            "dead_leaves": run.settings["leaves"],
            "images_seen": int(facts["step"]) * run.settings["batch"],
            "optimiser": f"AdamW, rate {run.settings['lr']:g}" + (", annealed linearly to zero" if run.finish else ""),
            "batch": run.settings["batch"],
        },
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    OmegaConf.save(OmegaConf.create(card), folder / "card.yaml")
    print(f"wrote {folder}; measure it with scripts/score_prior.py before it is used")


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Holds the work folder. Raises BlockingIOError if another run does."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{work} is being trained in by another process; end it first, or name another --work") from error
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint; an existing one is continued")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the decoded images, about a gigabyte (default: WORK)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long (a checkpoint is kept)")
    parser.add_argument("--finish", action="store_true", help="let the rate fall to zero over --minutes, then export")
    parser.add_argument("--export", type=Path, default=None, help="write the best so far to this folder, without training")
    parser.add_argument("--score", default=None, metavar="PRIOR", help="score this prior (a name or a folder) on the held-out crops")
    parser.add_argument("--channels", type=int, nargs="+", default=[96, 128, 192])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--leaves", type=float, default=0.12, help="share of dead-leaves images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; a checkpoint of one continues on the other")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw images; a GPU needs several")
    args = parser.parse_args()
    if args.finish and not math.isfinite(args.minutes):
        parser.error("--finish needs --minutes: over how long the rate falls to zero")
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in ("channels", "batch", "size", "lr", "warmup", "leaves", "seed")}
    pyramids = Pyramids(args.images, args.cache or args.work)
    if args.score is not None:
        print(json.dumps(scores(load_prior(args.score, device="cpu", channels_last=True), held_out_crops(pyramids))))
    elif args.export is not None and not args.finish:
        export(Run(settings, args.work), pyramids, args.export)
    else:
        with alone(args.work):
            run = Run(settings, args.work, 60 * args.minutes if args.finish else 0.0, args.device)
            train(run, pyramids, math.inf if args.finish else args.minutes, args.workers)
            if run.annealed:
                export(run, pyramids, args.export or args.work / "export")


if __name__ == "__main__":
    main()
