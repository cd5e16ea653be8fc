"""The callback that writes what `ReconstructionModule` samples, by image id."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from invsolve.config.model import Config
from invsolve.errors import ConfigError
from invsolve.runs.folder import RunFolder
from invsolve.runs.intake import accept_any
from invsolve.runs.lightning.datamodule import MeasurementDataModule
from invsolve.runs.lightning.module import ReconstructionModule, every_one_is
from invsolve.runs.outcome import LOST, Done, Outcome, RunResult
from invsolve.runs.task import Reconstruction
from invsolve.runs.units import check_unchanged, remaining
from invsolve.runs.writer import Writer


class ReconstructionWriter(BasePredictionWriter):
    """Writes a run folder (see `invsolve.runs.folder`) as batches are done, and leaves out what is finished in it.

    Args:
        out: the folder. It may hold the same evaluation, interrupted, or other shards of it; another one is refused.
        panels: pictures are written of the first so many images, -1 for all; drawing one may take longer than sampling it.

    Averages of each batch of rank 0, and the panels of all ranks, also go to the Trainer's loggers. After `Trainer.predict`,
    ``result`` says what was done (``sampled`` and ``failed`` by all ranks, times and calls of this one). An item that is neither
    finished nor reported failed in the end is in ``failed`` too. Raises ConfigError before anything is sampled where nothing could be.
    """

    def __init__(self, out: str, panels: int = 8) -> None:
        super().__init__("batch")
        self.out, self.panels = out, panels
        self.result: RunResult | None = None
        self._folder: RunFolder | None = None
        self._writer: Writer | None = None
        self._shown: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at the folder, decides what is left to do, the same on every rank, and begins."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, ReconstructionModule) or not isinstance(data, MeasurementDataModule):
            raise TypeError("ReconstructionWriter needs a ReconstructionModule and a MeasurementDataModule")
        pl_module.setup(stage)
        work = pl_module.work
        assert work is not None
        config = _whole(pl_module.config, data, self.out)
        self._folder = folder = RunFolder(config)
        ids = [item.id for item in data.items]
        todo: Any = None
        if trainer.is_global_zero:
            finished = set(folder.finished(ids))
            check_unchanged(folder, data.items, finished)
            parts = [part for unit in data.todo for part in remaining(unit, folder)]
            todo = [sorted(finished), [[item.id for item in part] for part in parts]]
        self._shown = set()
        finished_ids, parts_ids = trainer.strategy.broadcast(todo)
        by_id = {item.id: item for item in data.items}
        data.todo = [[by_id[id] for id in part] for part in parts_ids]
        self.result = RunResult(folder.path, skipped=[id for id in ids if id in set(finished_ids)], whole=trainer.is_global_zero)
        if not finished_ids:
            self._check_first(trainer, work, data)
        # A shard does not know how many images the others have.
        folder.begin(work.weights, **work.facts(), **({} if data.shard else {"expected": len(ids)}))
        work.partial = folder.path / "partial"
        pl_module.skip = folder.is_finished
        pictured = None if self.panels < 0 else frozenset(ids[: self.panels])
        self._writer = Writer(config, folder, len(work.steps), pictured)

    @staticmethod
    def _check_first(trainer: Trainer, work: Reconstruction, data: MeasurementDataModule) -> None:
        """Refuses what no item could be sampled with, on every rank; rank 0 looks, and what it reads of a dataset it keeps."""
        refusal: str | None = None
        if trainer.is_global_zero:
            items = [item for part in data.todo for item in part]
            try:
                accept_any(work.accept, items)
            except ConfigError as error:
                refusal = str(error)
            kept = iter(items)
            data.todo = [[next(kept) for _ in part] for part in data.todo]
        refusal = trainer.strategy.broadcast(refusal)
        if refusal is not None:
            raise ConfigError(refusal)

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, batch_indices: Sequence[int] | None,
        batch: Any, batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Writes a batch. On a full disk what is left is not sampled, and the next call does it."""
        assert self._writer is not None and self.result is not None and isinstance(prediction, Outcome)
        written, failed = self._writer.store(prediction)
        self.result.sampled += written
        self.result.failed |= failed
        total = Outcome(seconds=self.result.seconds, calls=self.result.calls)
        total.add(Outcome(seconds=prediction.seconds, calls=prediction.calls))
        self.result.seconds, self.result.calls = total.seconds, total.calls
        self._log(trainer, [done for done in prediction.done if done.item.id in written])
        self._compare(prediction)
        if self._writer.disk_is_full and isinstance(pl_module, ReconstructionModule):
            pl_module.skip = every_one_is

    def _compare(self, prediction: Outcome) -> None:
        """Says where an element of a dataset that was finished before, and is sampled again with its unit, is another now."""
        assert self._folder is not None and self.result is not None
        before = set(self.result.skipped)
        for item in (done.item for done in prediction.done if done.item.id in before):
            if self._folder.fact(item.id, "input_sha256") not in (None, item.digest()):
                warnings.warn(
                    f"{item.id} is not what it was when it was sampled: another dataset, or a random transform; its results are kept",
                    stacklevel=2,
                )

    def _log(self, trainer: Trainer, done: Sequence[Done]) -> None:
        """Averages of the batch and its panels to the loggers."""
        assert self._folder is not None and self.result is not None
        if not done or not trainer.loggers:
            return
        records = [(self._folder.record(one.item.id) or {}).get("rows", []) for one in done]
        of_mean: dict[str, list[float]] = {}
        for sample, metric, value in (row for rows in records for row in rows):
            if sample == "mean":
                of_mean.setdefault(metric, []).append(float(value))
        numbers = {f"mean/{metric}": float(np.mean(values)) for metric, values in of_mean.items()}
        numbers["seconds_per_image"] = float(np.mean([one.facts["seconds"] for one in done]))
        step = len(self.result.sampled)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
        self._log_panels(trainer, [one.item.id for one in done], step)

    def _log_panels(self, trainer: Trainer, ids: Sequence[str], step: int) -> None:
        """The panels of ids, where there are any, to the loggers that take pictures."""
        assert self._folder is not None
        for id in ids:
            path = self._folder.image_folder(id) / "panel.png"
            if id in self._shown or not path.is_file():
                continue
            self._shown.add(id)
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image(key=f"panel/{id}", images=[str(path)], step=step)
                elif hasattr(logger.experiment, "add_image"):
                    with Image.open(path) as opened:
                        picture = np.asarray(opened.convert("RGB"))
                    logger.experiment.add_image(f"panel/{id}", picture, step, dataformats="HWC")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once all ranks are done, gathers the tables and sees whether every item is finished or has a reason not to be."""
        assert self._folder is not None and self.result is not None
        trainer.strategy.barrier("invsolve.runs.lightning")
        if trainer.is_global_zero:
            result, before = self.result, set(self.result.skipped)
            told = {**self._folder.failures(), **result.failed}
            ids = [item.id for item in trainer.datamodule.items]
            finished, ours = set(self._folder.finished(ids)), set(result.sampled)
            result.sampled = [id for id in ids if id in finished and id not in before]
            full = self._writer is not None and self._writer.disk_is_full
            reason = "not sampled: the disk is full" if full else "not sampled: its process ended early; the same command goes on with it"
            lost = dict.fromkeys(before | ours, LOST)
            result.skipped = [id for id in result.skipped if id in finished]
            result.failed = {id: told.get(id, lost.get(id, reason)) for id in ids if id not in finished}
            result.rows = self._folder.rows()
            # Loggers hear rank 0 alone, which has seen its own images only.
            self._log_panels(trainer, result.sampled, len(result.sampled))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the folder consistent."""
        self._close()

    def _close(self) -> None:
        if self._folder is not None:
            self._folder.gather()
            self._folder.withdraw()


def _whole(config: Config, data: MeasurementDataModule, out: str) -> Config:
    """The configuration with its data section and its folder. Raises ConfigError for an empty folder name."""
    if not out:
        raise ConfigError("out is empty; the folder of the results is needed")
    settings = replace(config.settings, out=out, batch=data.batch)
    return replace(config, sections={**config.sections, "data": data.section}, settings=settings)
