"""From a sampled item to its files and its rows of metrics."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from invsolve.atomic import FULL
from invsolve.config.model import Config
from invsolve.metrics.fidelity import fidelity
from invsolve.pictures import panels
from invsolve.runs.folder import RunFolder
from invsolve.runs.outcome import Done, Outcome
from invsolve.runs.records import Row


class Writer:
    """Writes outcomes to a run folder.

    ``steps`` is the number of steps of the sampler, for the title of the panels. Pictures are written of the ids in
    ``pictured``, or of all where that is None.
    """

    def __init__(self, config: Config, folder: RunFolder, steps: int, pictured: frozenset[str] | None = None) -> None:
        self.config, self.folder, self.steps, self.pictured = config, folder, steps, pictured
        self._needed = 0

    @property
    def disk_is_full(self) -> bool:
        """Whether an item could not be written for want of room, and there still is none for its like."""
        there = next(place for place in (self.folder.path, *self.folder.path.absolute().parents) if place.is_dir())
        return self._needed > 0 and shutil.disk_usage(there).free < self._needed

    def store(self, outcome: Outcome) -> tuple[list[str], dict[str, str]]:
        """(ids written now, ids that failed with the reason); an item that another process has finished meanwhile is left alone.

        An item that cannot be written (a full disk) is among the failed, and so is recorded what failed before.
        """
        written, failed, unwritten = [], dict(outcome.failed), set()
        for done in outcome.done:
            id = done.item.id
            if self.folder.is_finished(id):
                continue
            try:
                self._write(done)
            except OSError as error:
                failed[id] = f"could not be written: {' '.join(str(error).split())}"
                unwritten.add(id)
                if error.errno in FULL:
                    self._needed = 2 * done.samples.nbytes
            else:
                written.append(id)
        for id, message in failed.items():
            self.folder.fail(id, message, id in unwritten)
        if all(self.folder.is_finished(done.item.id) for done in outcome.done):
            for path in outcome.checkpoints:
                path.unlink(missing_ok=True)
        return written, failed

    def _write(self, done: Done) -> None:
        """Pictures first, then arrays, and last the record that makes the id a finished one."""
        id, samples = done.item.id, done.samples.numpy()
        mean, std = done.mean.numpy(), done.std.numpy()
        self.folder.refuse_alias(id)
        x = None if done.x is None else done.x.numpy()
        rows = [*scores(done), *done.chains]
        if self.pictured is None or id in self.pictured:
            aligned, images = done.aligned.numpy(), self.folder.image_folder(id)
            for k, one in enumerate(aligned):
                with self.folder.replacing(images / f"sample_{k}.png") as path:
                    panels.save_png(one, path)
            shown = panels.Shown(self._title(id), done.view.numpy(), x, aligned[0], mean, std, len(samples), _captions(done, rows))
            with self.folder.replacing(images / "panel.png") as path:
                panels.save_panel(shown, path)
        if done.frames:
            with self.folder.replacing(self.folder.image_folder(id) / "trajectory.gif") as path:
                panels.save_gif(done.frames, path)
        digest = done.facts.get("input_sha256") or done.item.digest()
        facts = {"input": str(done.item.path), "input_sha256": digest, **done.item.facts(), **done.facts}
        arrays = {"y": done.y.numpy(), **({} if x is None else {"x": x}), "samples": samples, "mean": mean, "std": std}
        self.folder.finish(id, arrays, rows, facts, done.trace)

    def _title(self, id: str) -> str:
        parts = self.config.sections
        shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in parts["noise"].values.items()}
        noise = ", ".join(f"{key} {value}" for key, value in shown.items())
        how = f"{parts['sampler'].name}, {self.steps} steps"
        return f"{id}: {parts['operator'].name}, {parts['noise'].name} noise ({noise}), prior {Path(parts['prior'].name).name}, {how}"


def scores(done: Done) -> list[Row]:
    """Rows of metrics.csv: the residual always, PSNR and SSIM (`fidelity`) where the truth is known.

    Where the operator has symmetries (`Operator.align`: flip and sign in phase retrieval), a sample is first brought to its
    form nearest to the truth, and the mean is that of the samples aligned to the first, as in the panel.
    """
    labels = [*map(str, range(len(done.samples))), "mean"]
    rows = [Row(done.item.id, label, "residual", value) for label, value in zip(labels, done.residuals, strict=True)]
    if done.x is None:
        return rows
    for label, image in zip(labels, torch.cat([done.closest, done.mean[None]]), strict=True):
        found = fidelity(image, done.x)
        rows += [Row(done.item.id, label, metric, found[metric]) for metric in ("psnr", "ssim") if metric in found]
    return rows


def _captions(done: Done, rows: Sequence[Row]) -> dict[str, str]:
    """One line below each picture of the panel."""
    found: dict[Any, float] = {(row.sample, row.metric): row.value for row in rows}

    def line(label: str) -> str:
        psnr = f"PSNR {found[label, 'psnr']:.1f} dB, " if (label, "psnr") in found else ""
        return f"{psnr}residual / noise {found[label, 'residual']:.2f}"

    y = done.y.abs() if done.y.is_complex() else done.y
    shape = " x ".join(map(str, y.shape))
    measured = f"y: {shape}, {'modulus' if done.y.is_complex() else 'values'} {float(y.min()):.2f} to {float(y.max()):.2f}"
    return {"view": measured, "sample": line("0"), "mean": line("mean")}
