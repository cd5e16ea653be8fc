"""A run: from a configuration to an output folder, in one process.

What is wrong for all images is refused before the first step is sampled: names, sizes, masks, measurements, the folder. What is
wrong with one of several is an entry of what failed.
`invsolve.runs.lightning` does the same work on Lightning's Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from invsolve.config.model import Config
from invsolve.data.items import Item
from invsolve.engine import stopping
from invsolve.errors import ConfigError
from invsolve.runs.batch import read
from invsolve.runs.folder import RunFolder
from invsolve.runs.intake import accept_any
from invsolve.runs.outcome import LOST, Outcome, RunResult
from invsolve.runs.task import Reconstruction
from invsolve.runs.units import check_unchanged, remaining, units
from invsolve.runs.writer import Writer


def run(config: Config, prior: Any = None, say: Callable[[str], None] = print) -> RunResult:
    """Samples every image of ``config`` that is not finished yet and writes the folder ``config.settings.out``.

    ``prior`` takes the place of the configured one (then the section prior is only recorded); ``say`` receives lines for
    a person. An id whose trajectory diverges, or that cannot be read or written, is recorded in ``failed`` and the others go on.
    Raises ConfigError where the configuration cannot be run, and after the step at which a signal asked to stop
    `stopping.Stopped` (SIGTERM, SIGHUP) or KeyboardInterrupt (Ctrl-C), with the folder in order.
    """
    with stopping.watching() as watch:
        return _run(config, prior, say, watch)


def _run(config: Config, prior: Any, say: Callable[[str], None], watch: stopping.Watch) -> RunResult:
    items: list[Item] = config.items()
    folder = RunFolder(config)
    if items and all(item.problem for item in items) and config.sections["data"].values.get("shard") is None:
        raise ConfigError(items[0].problem)
    result = RunResult(folder.path, skipped=folder.finished([item.id for item in items]))
    check_unchanged(folder, items, result.skipped)
    if result.skipped:
        many = len(result.skipped)
        say(f"{many} of {len(items)} images {'is' if many == 1 else 'are'} finished in {folder.path}, not sampled again")
    if len(result.skipped) < len(items):
        _sample(config, folder, items, result, prior, say, watch)
    folder.gather()
    result.rows = folder.rows()
    return result


def _find_lost(folder: RunFolder, items: Sequence[Item], result: RunResult) -> None:
    """Moves ids whose results have been there, and are no more, to the failed ones."""
    lost = [item.id for item in items if item.id in {*result.sampled, *result.skipped} and not folder.is_finished(item.id)]
    result.sampled, result.skipped = ([id for id in ids if id not in lost] for ids in (result.sampled, result.skipped))
    result.failed |= dict.fromkeys(lost, LOST)


def _sample(
    config: Config, folder: RunFolder, items: list[Item], result: RunResult,
    prior: Any, say: Callable[[str], None], watch: stopping.Watch,
) -> None:  # fmt: skip
    """Samples and writes what is not finished."""
    work = Reconstruction(config, prior, partial=folder.path / "partial")
    say(f"{config.sections['operator'].name}, {work.noise.describe()}")
    if not result.skipped:
        accept_any(work.accept, items)
    with watch.holding():
        folder.begin(work.weights, **work.facts())
        writer = Writer(config, folder, len(work.steps))
        try:
            for unit in (part for whole in units(items, config.settings.batch) for part in remaining(whole, folder)):
                if stopping.requested() is not None:
                    break
                outcome = work.solve(read(unit))
                _account(result, outcome, writer.store(outcome), say)
                if writer.disk_is_full:
                    say(f"{folder.path}: the disk is full; what is not finished is left to the next call")
                    break
            _find_lost(folder, items, result)
        finally:
            folder.gather()
            # A configuration that gave nothing must not bar its folder to the corrected one.
            folder.withdraw()


def _account(result: RunResult, outcome: Outcome, stored: tuple[list[str], dict[str, str]], say: Callable[[str], None]) -> None:
    """Adds an outcome, of which ids were written and ids failed, to the result."""
    for done in outcome.done:
        if "chains" in done.facts:
            say(f"{done.item.id}: {done.facts['chains']}")
    result.sampled += stored[0]
    result.failed |= stored[1]
    result.seconds += outcome.seconds
    if outcome.calls is not None:
        result.calls = {key: (result.calls or {}).get(key, 0) + count for key, count in outcome.calls.items()}
