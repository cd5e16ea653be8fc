"""An evaluation by the command line: a configuration and a Trainer made from its section `trainer`."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from invsolve.config import Config, ConfigError
from invsolve.evaluation.datamodule import MeasurementDataModule
from invsolve.evaluation.module import ReconstructionModule
from invsolve.evaluation.writer import ReconstructionWriter
from invsolve.run import RunResult


def evaluate(config: Config, prior: Any = None, say: Callable[[str], None] = print) -> RunResult:
    """Samples every image of ``config`` that is not finished yet on the devices that its section `trainer` names.

    Writes the folder ``config.settings.out``, and in the end its report.html; ``prior`` takes the place of the configured one. The
    result is that of all ranks on rank 0, and of its own on others. Raises ConfigError where the configuration cannot be run.
    """
    module, data = ReconstructionModule.from_config(config, prior), MeasurementDataModule.from_config(config)
    writer = ReconstructionWriter(str(config.settings.out), config.trainer.panels)
    trainer = _trainer(config, writer)
    if trainer.is_global_zero:
        say(f"{config.sections['operator'].name}, {config.sections['noise'].build().describe()}")
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    except ConfigError:
        _remove_logs(Path(str(config.settings.out)))
        raise
    result = writer.result
    assert result is not None
    if trainer.is_global_zero and result.skipped:
        say(f"{len(result.skipped)} of {len(data.items)} images were finished in {result.out}")
    if trainer.is_global_zero and config.trainer.report and config.sections["data"].values.get("shard") is None:
        _write_report(result, say)
    return result


def _write_report(result: RunResult, say: Callable[[str], None]) -> None:
    """report.html, unless nothing is new; what keeps it from being written spoils no result."""
    from invsolve.evaluation.reporting import FILE, report

    if not (result.sampled or result.skipped):
        return
    try:
        if result.sampled or result.failed or _is_older(result.out / FILE):
            say(f"report:   {report(result.out)}")
    except (ConfigError, OSError, RuntimeError, MemoryError, ValueError) as error:
        say(f"{FILE} was not written: {' '.join(str(error).split()) or type(error).__name__}")


def _is_older(report: Path) -> bool:
    """Whether a report is not there, or older than a record of its folder: one that was interrupted, or a shard, wrote none."""
    records = [path for path in (report.parent / "records").glob("*.json") if not path.name.endswith(".part.json")]
    times = [path.stat().st_mtime_ns for path in records]
    return not report.exists() or report.stat().st_mtime_ns < max(times, default=0)


def _remove_logs(out: Path) -> None:
    """Loggers make their folders before anything can be refused; a refusal leaves none behind."""
    if not (out / "config.yaml").is_file() and (out / "logs").is_dir():
        shutil.rmtree(out / "logs", ignore_errors=True)
        if not any(out.iterdir()):
            out.rmdir()


def _trainer(config: Config, writer: ReconstructionWriter) -> Trainer:
    """The Trainer of the section `trainer`. Raises ConfigError for what Lightning refuses."""
    t = config.trainer
    # What Lightning says of the machine at every start says nothing of the evaluation.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    accelerator, devices = _device(config)
    try:
        return Trainer(
            accelerator=accelerator, devices=devices, num_nodes=t.num_nodes, strategy=t.strategy, logger=_logger(config) or False,
            callbacks=[writer], enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=config.settings.progress,
            default_root_dir=config.settings.out,
        )  # fmt: skip
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _device(config: Config) -> tuple[str, Any]:
    """(accelerator, devices): `device` chooses where the section trainer leaves it open."""
    t, device = config.trainer, config.settings.device
    if device == "auto":
        return t.accelerator, t.devices
    kind, _, number = device.partition(":")
    accelerator = "gpu" if kind == "cuda" else kind
    if t.accelerator not in ("auto", accelerator, kind):
        raise ConfigError(f"device = {device} and trainer.accelerator = {t.accelerator} contradict each other")
    if number and t.devices != 1:
        raise ConfigError(f"device = {device} names one device, and trainer.devices = {t.devices}")
    return accelerator, [int(number)] if number.isascii() and number.isdigit() else t.devices


def _logger(config: Config) -> Logger | None:
    # A name of its own for each process that begins: several may write to one folder.
    name, folder = config.trainer.logger, Path(str(config.settings.out)) / "logs"
    version = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        if name == "csv":
            return CSVLogger(folder, name="", version=version, flush_logs_every_n_steps=1)
        if name == "tensorboard":
            return TensorBoardLogger(folder, name="", version=version)
        if name == "wandb":
            return WandbLogger(save_dir=folder, name=config.name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"trainer.logger = {name}: {' '.join(str(error).split())} (pip install 'invsolve[loggers]')") from error
    return None
