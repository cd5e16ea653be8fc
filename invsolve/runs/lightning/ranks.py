"""Signals in an evaluation: what one rank of a group has heard, all follow, and none waits in vain for another.

Lightning answers SIGTERM by a broadcast from inside the signal handler, which never returns where the others are at another
place, and Ctrl-C by exit code 1. Here a rank tells by the store of its process group that it was asked to stop; all look there
between steps, and meet once each is done with its own share, where a signal is still heard.
"""

from __future__ import annotations

import itertools
import signal
import time
from functools import partial
from typing import Any

import torch.distributed
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from invsolve.engine import stopping
from invsolve.errors import ConfigError

_EVERY = 0.25  # seconds between looks at the store
_calls = itertools.count()  # the same in all ranks, which make the same calls


class Ranks(Callback):
    """Holds the signals of ``watch`` while a Trainer predicts, and shares them between its ranks.

    Raises ConfigError for a strategy whose processes are forked or spawned by this one: their results would stay with them.
    """

    def __init__(self, watch: stopping.Watch, trainer: Trainer, strategy: str) -> None:
        self.watch, self.number, self.group = watch, next(_calls), None
        self._meeting: _Meeting | None = None
        launcher, environment = trainer.strategy.launcher, getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(launcher, _MultiProcessingLauncher):
            raise ConfigError(
                f"trainer.strategy = {strategy}: its processes are started by multiprocessing and keep their results; "
                "use ddp (or auto on one device), or start the processes by torchrun"
            )
        # This process has yet to start the others, and so can end them all.
        by_script = isinstance(launcher, _SubprocessScriptLauncher) and not (environment and environment.creates_processes_externally)
        self._starts = launcher if by_script else None
        self._alone = self._starts is not None and trainer.num_nodes == 1
        # One that was started by Lightning: a nonzero exit code would have rank 0 killed, which speaks for all.
        self.silent = isinstance(environment, LightningEnvironment) and self._starts is None and trainer.local_rank > 0
        watch.held = trainer.world_size > 1 and not self._alone
        watch.kill = None if self._starts is None else self.end_others
        connector = trainer._signal_connector
        connector.register_signal_handlers = partial(_register, connector, watch)

    def end_others(self, signum: int) -> None:
        """Ends the ranks that this process has started."""
        if self._starts is not None:
            self._starts.kill(signum)
            # Lightning's observer ends this process when one of these has died.
            self._starts.procs.clear()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The process group is up: what a rank hears from now on, the others can hear."""
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            store = torch.distributed.distributed_c10d._get_default_store()
            self._meeting = _Meeting(store, f"invsolve/{self.number}", trainer.world_size)
            self.watch.others = self._meeting.tell

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        self.watch.held = True

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the other ranks, in a way that signals can interrupt; after it every rank knows what any has heard."""
        if self._meeting is not None:
            self.watch.requested()
            self._meeting.wait(self.watch)
            self.watch.others = None


class _Meeting:
    """Keys of the store of a process group: the signal that a rank was sent, and how many ranks are done."""

    def __init__(self, store: Any, name: str, world: int) -> None:
        self.store, self.name, self.world = store, name, world
        self._said, self._looked = False, 0.0
        self._heard: int | None = None

    def tell(self, signum: int | None, now: bool = False) -> int | None:
        """Tells the others of a signal, once, and returns what any rank has told, as known a moment ago."""
        try:
            if signum is not None and not self._said:
                self.store.set(f"{self.name}/stop", str(signum))
                self._said = True
            if now or time.monotonic() - self._looked > _EVERY:
                self._looked = time.monotonic()
                if self.store.check([f"{self.name}/stop"]):
                    self._heard = int(self.store.get(f"{self.name}/stop"))
        except RuntimeError:  # the process that keeps the store is gone, and with it rank 0
            self._heard = int(signal.SIGTERM)
        return self._heard

    def wait(self, watch: stopping.Watch) -> None:
        """Returns when all ranks have called it; a signal that comes meanwhile is passed on to those that are still at work."""
        try:
            here = self.store.add(f"{self.name}/done", 1)
            while here < self.world:
                time.sleep(0.05)
                watch.requested()
                here = self.store.add(f"{self.name}/done", 0)
        except RuntimeError:
            return  # Lightning's own barrier says what is wrong
        watch.signum = watch.signum or self.tell(watch.signum, now=True)


def _register(connector: Any, watch: stopping.Watch) -> None:
    """Lightning's handlers, for what else it listens to (requeueing by Slurm), and ours over them."""
    type(connector).register_signal_handlers(connector)
    watch.reinstall()
