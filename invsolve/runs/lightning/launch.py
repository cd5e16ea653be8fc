"""An evaluation by the command line: a configuration and a Trainer made from its section `trainer`."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from invsolve import ids
from invsolve.config.model import Config
from invsolve.engine import stopping
from invsolve.errors import ConfigError
from invsolve.runs.lightning.callback import ReconstructionWriter
from invsolve.runs.lightning.datamodule import MeasurementDataModule
from invsolve.runs.lightning.module import ReconstructionModule
from invsolve.runs.lightning.ranks import Ranks
from invsolve.runs.outcome import RunResult


def evaluate(config: Config, prior: Any = None, say: Callable[[str], None] = print) -> RunResult:
    """Samples every image of ``config`` that is not finished yet on the devices that its section `trainer` names.

    Writes the folder ``config.settings.out``, and in the end its report.html; ``prior`` takes the place of the configured one. The
    result is that of all ranks on rank 0, and of its own on others. Raises ConfigError where the configuration cannot be run, and
    after the step at which a signal asked any rank to stop `stopping.Stopped` (SIGTERM, SIGHUP) or KeyboardInterrupt (Ctrl-C).
    """
    with stopping.watching() as watch:
        return _evaluate(config, prior, say, watch)


def _evaluate(config: Config, prior: Any, say: Callable[[str], None], watch: stopping.Watch) -> RunResult:
    module, data = ReconstructionModule.from_config(config, prior), MeasurementDataModule.from_config(config)
    writer = ReconstructionWriter(str(config.settings.out), config.trainer.panels)
    out = Path(str(config.settings.out))
    there = [place for place in (out / "logs", out) if place.exists()]
    trainer = _trainer(config, writer)
    if trainer.is_global_zero:
        say(f"{config.sections['operator'].name}, {config.sections['noise'].build().describe()}")
    try:
        _predict(trainer, module, data, watch, config.trainer.strategy)
    finally:
        _remove_logs(out, there, trainer.loggers)
    result = writer.result
    assert result is not None
    if trainer.is_global_zero and result.skipped:
        say(f"{len(result.skipped)} of {len(data.items)} images were finished in {result.out}")
    if trainer.is_global_zero and config.trainer.report and config.sections["data"].values.get("shard") is None:
        _write_report(result, say)
    return result


def _predict(trainer: Trainer, module: ReconstructionModule, data: MeasurementDataModule, watch: stopping.Watch, strategy: str) -> None:
    """Trainer.predict, ended in order by a signal: raises Stopped once what is finished is gathered."""
    ranks = Ranks(watch, trainer, strategy)
    trainer.callbacks.insert(0, ranks)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    except BaseException as error:
        # Lightning makes an exit of its own of an interrupt that did not come by our handler.
        signum = signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else watch.signum
        if signum is None or isinstance(error, ConfigError):
            raise
        ranks.end_others(stopping.KILL)
        raise stopping.Stopped(signum, 0 if ranks.silent else None) from error
    finally:
        watch.held, watch.kill, watch.others = False, None, None
    if watch.signum is not None:
        raise stopping.Stopped(watch.signum, 0 if ranks.silent else None)


def _write_report(result: RunResult, say: Callable[[str], None]) -> None:
    """report.html, unless nothing is new; what keeps it from being written spoils no result."""
    from invsolve.reports.page import FILE, report

    if not (result.sampled or result.skipped):
        return
    try:
        if result.sampled or result.failed or _is_older(result.out / FILE):
            say(f"report:   {report(result.out)}")
    except (ConfigError, OSError, RuntimeError, MemoryError, ValueError) as error:
        say(f"{FILE} was not written: {' '.join(str(error).split()) or type(error).__name__}")


def _is_older(report: Path) -> bool:
    """Whether a report is not there, or older than a record of its folder: one that was interrupted, or a shard, wrote none."""
    records = [path for path in (report.parent / "records").glob("*.json") if ids.temporary(path.name) is None]
    times = [path.lstat().st_mtime_ns for path in records]
    return not report.exists() or report.stat().st_mtime_ns < max(times, default=0)


def _remove_logs(out: Path, there: Sequence[Path], loggers: Sequence[Any]) -> None:
    """Loggers make their folders before anything can be refused; a refusal leaves none of them behind, and all that was ``there``."""
    if (out / "config.yaml").is_file():
        return
    for logger in loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):  # in folders named by time and process, see `_logger`
            shutil.rmtree(logger.log_dir, ignore_errors=True)
    for place in (out / "logs", out):
        if place not in there and place.is_dir() and not any(place.iterdir()):
            place.rmdir()


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
