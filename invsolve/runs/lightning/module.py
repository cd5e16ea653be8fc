"""Posterior sampling as the predict step of a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule

from invsolve.config.load import assemble
from invsolve.config.model import Component, Config
from invsolve.config.settings import Settings
from invsolve.engine import stopping
from invsolve.errors import ConfigError
from invsolve.runs.batch import Batch
from invsolve.runs.outcome import Outcome
from invsolve.runs.task import Reconstruction

_GROUPS = ("prior", "operator", "noise", "schedule", "sampler")
_PRECISIONS = {"32-true": "", "32": "", "bf16-mixed": "bf16", "bf16-true": "bf16", "bf16": "bf16"}


class ReconstructionModule(LightningModule):
    """Samples the posterior of each item of a batch; for `Trainer.predict` with a `MeasurementDataModule`.

    Args:
        prior, operator, noise, sampler, schedule: sections of a configuration: a name, or {"name": ..., key: value}. Without a
            schedule it is the sampler's own for the operator.
        samples, seed, memory_gb, checkpoint_every, trajectory, noise_device: see `invsolve.config.Settings`.

    `predict_step` returns an `Outcome`: what was sampled, and what failed, by id. It does not matter to the result on how many
    devices the Trainer runs: to the last bit where a process has as many CPU threads as before (set OMP_NUM_THREADS; without it
    ranks share the cores), else up to rounding. Precision belongs to the prior (`precision: bf16`); a Trainer with precision
    bf16 sets it, and nothing but the network runs in bf16. Raises ConfigError as `invsolve run` does.
    """

    def __init__(
        self,
        prior: str | dict[str, Any],
        operator: str | dict[str, Any],
        noise: str | dict[str, Any],
        sampler: str | dict[str, Any] = "dps",
        schedule: str | dict[str, Any] | None = None,
        samples: int = 4,
        seed: int = 0,
        memory_gb: float | None = None,
        checkpoint_every: int = 0,
        trajectory: bool = False,
        noise_device: str = "cpu",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        tree: dict[str, Any] = {"prior": prior, "operator": operator, "noise": noise, "sampler": sampler}
        tree["schedule"] = schedule
        tree |= {"samples": samples, "seed": seed, "memory_gb": memory_gb, "checkpoint_every": checkpoint_every}
        tree |= {"trajectory": trajectory, "noise_device": noise_device, "progress": False}
        sections, settings = assemble(tree, (), _GROUPS, Settings, type(self).__name__)
        self.config = Config("evaluation", sections, settings)
        self.work: Reconstruction | None = None
        self.skip: Callable[[str], bool] = none_is
        self._prior: Any = None

    @classmethod
    def from_config(cls, config: Config, prior: Any = None) -> ReconstructionModule:
        """The module of a configuration; ``prior`` takes the place of the configured one, which is then only recorded."""
        sections = {group: {"name": part.name, **part.values} for group, part in config.sections.items() if group in _GROUPS}
        s = config.settings
        module = cls(
            **sections, samples=s.samples, seed=s.seed, memory_gb=s.memory_gb, checkpoint_every=s.checkpoint_every,
            trajectory=s.trajectory, noise_device=s.noise_device,
        )  # fmt: skip
        module.config = replace(config, settings=replace(s, progress=False))  # the Trainer has a bar of its own
        module._prior = prior
        return module

    def setup(self, stage: str) -> None:
        """Builds the components on the device of this rank, once."""
        if self.work is None:
            precision = str(self.trainer.precision)
            if precision not in _PRECISIONS:
                raise ConfigError(f"Trainer(precision={precision!r}): the network runs in 32-true or bf16-mixed")
            if _PRECISIONS[precision]:
                self.config = _with_precision(self.config, _PRECISIONS[precision])
            with _plain(self.trainer.strategy.root_device.type):
                self.work = Reconstruction(self.config, self._prior, self.trainer.strategy.root_device)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Outcome:
        """Samples a batch of a `MeasurementDataModule`, unless all of it is finished. Raises TypeError for another batch."""
        if not isinstance(batch, Batch):
            raise TypeError(f"a batch is a {type(batch).__name__}; use MeasurementDataModule (from_dataset takes a torch Dataset)")
        assert self.work is not None
        if stopping.requested() is not None:  # a unit that was read before
            return Outcome()
        if batch.items and all(self.skip(item.id) for item in batch.items):
            return Outcome(failed=dict(batch.failed))
        try:
            with _plain(self.work.device.type):
                return self.work.solve(batch)
        except stopping.Stopped:
            return Outcome()  # the Trainer's loop ends by itself, as on every other rank: see `datamodule._Share`


def none_is(id: str) -> bool:
    """`ReconstructionModule.skip` where nothing is finished."""
    return False


def every_one_is(id: str) -> bool:
    """`ReconstructionModule.skip` where nothing more shall be sampled."""
    return True


def _with_precision(config: Config, precision: str) -> Config:
    """The configuration whose prior's network runs in ``precision``, where the prior has such a key."""
    prior = config.sections["prior"]
    if "precision" not in prior.values:
        return config
    return replace(config, sections={**config.sections, "prior": Component("prior", prior.name, {**prior.values, "precision": precision})})


@contextmanager
def _plain(device: str) -> Iterator[None]:
    """Neither inference mode, which forbids guidance by gradients, nor the Trainer's autocast and default dtype.

    Measurements and solves need single precision; the prior switches to bf16 by itself, inside its network.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)
