"""Stopping when asked: SIGTERM, SIGHUP or Ctrl-C ends a run after the step that it is at, so that nothing finished is lost.

`watching` puts handlers over the default ones for as long as a run lasts, in the main thread only. A signal is noted, and raised as
`Stopped` at once where nothing is lost by that (while a model is loaded), and where the watch is `held` at the next safe place: the
reverse loop asks `requested` after every step. A second signal ends the process at once. `sample` alone installs nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
# `timeout` and the launchers send a signal to a process and to its group: two that come so soon after each other are one.
_SAME = 0.5


class Stopped(SystemExit):
    """A signal asked to stop. The exit code is 128 + its number, unless ``code`` is another: that of a rank for which another speaks."""

    def __init__(self, signum: int, code: int | None = None) -> None:
        super().__init__(128 + signum if code is None else code)
        self.signum = signum

    @property
    def name(self) -> str:
        """The name of the signal."""
        return signal.Signals(self.signum).name


class Watch:
    """The signal handler of a process, and what it has heard.

    held: signals wait for a safe place. signum: of the signal that asked to stop, or None. kill: ends child processes by a signal.
    others: tells the other ranks of a group what this one has heard, None included, and returns what any of them has.
    """

    def __init__(self) -> None:
        self.pid, self.held = os.getpid(), False
        self.signum: int | None = None if _watch is None else _watch.signum
        self.kill: Callable[[int], object] | None = None
        self.others: Callable[[int | None], int | None] | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Takes the place of default handlers; a handler of someone else's, and an ignored signal (nohup), stay."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                found = signal.getsignal(signum)
                if found in (signal.SIG_DFL, signal.default_int_handler) or isinstance(found, Watch):
                    self._before[signum] = found
                    signal.signal(signum, self)

    def reinstall(self) -> None:
        """Once more, over whatever a library has put there meanwhile."""
        for signum in self._before:
            signal.signal(signum, self)

    def restore(self) -> None:
        """Puts back what was there before."""
        for signum, found in self._before.items():
            signal.signal(signum, found)
        self._before = {}

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler. Raises Stopped unless it is held; ends the process at the second signal."""
        if os.getpid() != self.pid:  # a forked process has inherited it; its parent decides
            return
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
            if not self.held:
                raise Stopped(signum)
        elif time.monotonic() - self._since >= _SAME:
            if self.kill is not None:
                self.kill(KILL)
            os._exit(128 + signum)

    def requested(self) -> int | None:
        """The signal that asked this process, or another rank of its group, to stop; None while there is none."""
        if self.others is not None:
            heard = self.others(self.signum)
            if self.signum is None and heard is not None:
                self.signum, self._since = heard, time.monotonic()
        return self.signum

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Holds signals while the block runs, which asks `requested`, and raises Stopped after it if there was one."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.signum is not None:
            raise Stopped(self.signum)


_watch: Watch | None = None


@contextmanager
def watching() -> Iterator[Watch]:
    """Installs a watch for a block, and restores the handlers after it; inside another such block it is that one's.

    Raises Stopped (a SystemExit) out of the block where a signal asked for it, and for Ctrl-C KeyboardInterrupt.
    """
    global _watch
    if _watch is not None and _watch.pid == os.getpid():
        yield _watch
        return
    before, _watch = _watch, Watch()
    watch = _watch
    watch.install()
    try:
        yield watch
    except Stopped as stop:
        if stop.signum == signal.SIGINT and stop.code:
            raise KeyboardInterrupt from None
        raise
    finally:
        watch.restore()
        _watch = before


def requested() -> int | None:
    """The signal that asked this process to stop; None while there is none, and where nobody watches."""
    return None if _watch is None or _watch.pid != os.getpid() else _watch.requested()


def in_reader(index: int) -> None:
    """For processes that read ahead, as `worker_init_fn`: a signal to the whole group is left to the process that they read for.

    A second one ends them, as their own process does that waits for them in vain.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _Patience())


class _Patience:
    """A handler that lets the first signal pass."""

    def __init__(self) -> None:
        self.since: float | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.since is None:
            self.since = now
        elif now - self.since >= _SAME:
            os._exit(128 + signum)
