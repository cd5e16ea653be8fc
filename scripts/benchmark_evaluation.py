"""What an evaluation costs beyond the sampling itself, and whether its memory grows with the number of images.

    python scripts/benchmark_evaluation.py                            # 100 images of 64x64, 4 samples each, DAPS with 50 levels in bf16
    python scripts/benchmark_evaluation.py --images 12 --steps 5      # less, projected to 100 images and the preset's steps
    python scripts/benchmark_evaluation.py sampler=dps device=cuda    # other settings of the preset photo_sr4

The images are crops of the shipped photographs. Sampling is the time inside `Reconstruction._sample`, from the measurement to samples
on the CPU; all else between the call of `evaluate` and its return counts as cost of the evaluation: making the Trainer, loading
the prior, reading, measuring, residuals and metrics, arrays, records and panels, loggers, gathering the tables, and report.html (also
shown without it: trainer.report=false leaves it out). Each part is counted by wall clock and by processor time of this process; on a
machine with other work only the latter means much, on a GPU only the former. Imports and `invsolve score` are timed apart.

Projected: what happens once stays, what happens for each image (or for each of the images with a panel) is multiplied, the report
counts as proportional to images, and sampling is proportional to images and steps. Memory: resident size after each batch, and
its slope over the later half.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from invsolve.config.load import load
from invsolve.data.items import find_files
from invsolve.runs.task import Reconstruction
from invsolve.runs.writer import Writer

SIDE, WANTED = 64, 100
KINDS = ("wall", "processor")


def now() -> np.ndarray[Any, Any]:
    return np.array([time.perf_counter(), time.process_time()])


def resident() -> float:
    """Resident memory of this process, in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


class Clock:
    """Adds up the time within functions, by name, and the calls."""

    def __init__(self) -> None:
        self.spent: dict[str, np.ndarray[Any, Any]] = {}
        self.calls: dict[str, int] = {}
        self.resident: list[float] = []

    def add(self, name: str, spent: np.ndarray[Any, Any]) -> None:
        self.spent[name] = self.spent.get(name, np.zeros(2)) + spent
        self.calls[name] = self.calls.get(name, 0) + 1

    def around(self, owner: Any, method: str, name: Callable[..., str]) -> None:
        """Times a method under the name that its arguments give."""
        inner = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = now()
            try:
                return inner(*arguments, **options)
            finally:
                self.add(name(*arguments), now() - start)
                if method == "store":
                    self.resident.append(resident())

        setattr(owner, method, timed)


def crops(folder: Path, count: int) -> None:
    """Writes random crops of the shipped photographs."""
    files, random = find_files("data/photos"), np.random.default_rng(0)
    for k in range(count):
        with Image.open(files[k % len(files)]) as photo:
            left, top = (int(random.integers(0, side - SIDE)) for side in photo.size)
            photo.convert("RGB").crop((left, top, left + SIDE, top + SIDE)).save(folder / f"crop_{k:03d}.png")


def measure(images: int, steps: int | None, overrides: list[str], folder: Path) -> dict[str, Any]:
    (folder / "images").mkdir()
    crops(folder / "images", images)
    common = ["sampler=daps", "prior.precision=bf16", "samples=4", *overrides, f"data.root={folder / 'images'}", f"out={folder / 'run'}"]
    preset = load("photo_sr4", [*common, "progress=false"])
    config = load("photo_sr4", [*common, "progress=false", *([] if steps is None else [f"schedule.steps={steps}"])])
    clock, pictured = Clock(), config.trainer.panels
    clock.around(Reconstruction, "_sample", lambda *_: "sampling")
    clock.around(Reconstruction, "solve", lambda *_: "solve")
    clock.around(Writer, "store", lambda *_: "store")
    seen = lambda writer, done: "panel" if writer.pictured is None or done.item.id in writer.pictured else "plain"  # noqa: E731
    clock.around(Writer, "_write", seen)
    start = now()
    from invsolve.reports import score
    from invsolve.runs.lightning import evaluate, launch

    clock.around(launch, "_write_report", lambda *_: "report")
    imported = now()
    result = evaluate(config)
    end = now()
    score(folder / "run")
    scored = now()
    assert len(result.sampled) == images and not result.failed, result.failed
    found = {name: clock.spent[name] for name in ("sampling", "solve", "store", "panel")}
    plain, page = (clock.spent.get(name, np.zeros(2)) for name in ("plain", "report"))
    total = end - imported
    # An image without a panel costs what the others do, less the pictures.
    each_plain = plain / max(1, clock.calls.get("plain", 0))
    pictures = np.maximum(found["panel"] / clock.calls["panel"] - each_plain, 0) if clock.calls.get("plain") else np.zeros(2)
    drawn = clock.calls["panel"]
    around = found["solve"] - found["sampling"] + found["store"] - pictures * drawn
    once = total - found["solve"] - found["store"] - page
    factor = preset.sections["schedule"].values["steps"] / config.sections["schedule"].values["steps"]
    wanted_drawn = WANTED if pictured < 0 else min(pictured, WANTED)
    projected_sampling = found["sampling"] / images * WANTED * factor
    projected = projected_sampling + around / images * WANTED + pictures * wanted_drawn + once
    later = np.array(clock.resident[len(clock.resident) // 2 :])
    batch = config.settings.batch
    slope = float(np.polyfit(np.arange(len(later)) * batch, later, 1)[0]) if len(later) > 2 else float("nan")
    return {
        "images": images, "samples": config.settings.samples, "batch": batch, "steps": config.sections["schedule"].values["steps"],
        "preset_steps": preset.sections["schedule"].values["steps"], "sampler": config.sections["sampler"].name,
        "precision": config.sections["prior"].values.get("precision"), "device": result.rows and str(_device(folder / "run")),
        "total": list(total), "sampling": list(found["sampling"]), "ratio": list(total / found["sampling"]),
        "sampling_per_image": list(found["sampling"] / images), "around_per_image": list(around / images),
        "panel": list(pictures), "panels": drawn, "once": list(once), "import": list(imported - start), "score": list(scored - end),
        "report_per_image": list(page / images), "projected_ratio": list((projected + page / images * WANTED) / projected_sampling),
        "projected_without_report": list(projected / projected_sampling), "resident_mb": clock.resident, "mb_per_image": slope,
    }  # fmt: skip


def _device(run: Path) -> str:
    return str(json.loads((run / "manifest.json").read_text())["device"])


def report(found: dict[str, Any]) -> str:
    def pair(key: str, digits: int = 3) -> str:
        return " | ".join(f"{value:.{digits}f}" for value in found[key])

    lines = [
        f"{found['images']} images of {SIDE}x{SIDE}, {found['samples']} samples each, batch {found['batch']}, {found['sampler']} with "
        f"{found['steps']} steps, {found['precision']}, {found['device']}",
        "",
        f"| seconds | {' | '.join(KINDS)} |",
        "| --- | --- | --- |",
        f"| sampling, an image | {pair('sampling_per_image')} |",
        f"| beside it, an image (read, measure, metrics, write, log) | {pair('around_per_image')} |",
        f"| pictures, each of the {found['panels']} images that get them | {pair('panel')} |",
        f"| report.html, an image | {pair('report_per_image')} |",
        f"| once (prior, Trainer, tables) | {pair('once')} |",
        f"| **evaluation / sampling, as measured** | {pair('ratio', 4)} |",
        f"| **projected to {WANTED} images of {found['preset_steps']} steps** | {pair('projected_ratio', 4)} |",
        f"| the same without report.html | {pair('projected_without_report', 4)} |",
        f"| not in it: imports | {pair('import')} |",
        f"| not in it: `invsolve score` | {pair('score')} |",
        "",
        f"resident memory after the batches, MB: {', '.join(f'{value:.0f}' for value in found['resident_mb'])}; "
        f"slope over the later half {1024 * found['mb_per_image']:.0f} kB an image",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=WANTED)
    parser.add_argument("--steps", type=int, default=None, help="levels of the schedule, in place of the preset's")
    parser.add_argument("--json", type=Path, default=None, help="also write what was found to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other settings of the preset photo_sr4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.images, options.steps, options.overrides, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))


if __name__ == "__main__":
    main()
