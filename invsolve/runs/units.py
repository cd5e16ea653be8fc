"""Which items are sampled together, and which still have to be.

What is sampled together decides how floating-point numbers are rounded. So items are cut into units once, from the whole list, and
a run that continues takes whole units again: its arrays are then those of an uninterrupted run to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from invsolve.data.items import Item
from invsolve.errors import ConfigError
from invsolve.runs.folder import RunFolder


def units(items: Iterable[Item], batch: int) -> list[list[Item]]:
    """The items in lists of at most ``batch`` with one image shape each, in the order in which shapes appear."""
    groups: dict[tuple[object, bool], list[Item]] = {}
    for item in items:
        groups.setdefault((item.image_shape, item.measured), []).append(item)
    return [group[first : first + batch] for group in groups.values() for first in range(0, len(group), batch)]


def remaining(unit: list[Item], folder: RunFolder) -> list[list[Item]]:
    """What of a unit has to be sampled: all of it if an id is missing (finished ones are not written again), or nothing.

    Where only ids are missing that failed before, these one by one, as they were sampled then. Those that were sampled, but
    could not be written, were sampled with their unit.
    """
    missing = [item for item in unit if not folder.is_finished(item.id)]
    records = [folder.record(item.id) or {} for item in missing]
    if missing and all("failed" in record and not record.get("unwritten") for record in records):
        return [[item] for item in missing]
    return [unit] if missing else []


def check_unchanged(folder: RunFolder, items: Sequence[Item], finished: Iterable[str]) -> None:
    """Raises ConfigError if the input of a finished id, or a file of the configuration, is no longer what it was made from.

    An element of a dataset is compared when it is read, if it is.
    """
    ids = set(finished)
    for item in items:
        if item.id in ids:
            folder.refuse_changed(item.id)
        then = folder.fact(item.id, "input_sha256") if item.id in ids and item.filed else None
        if then is not None and then != item.digest():
            raise ConfigError(
                f"out = {folder.path}: {item.path} has changed since {item.id} was sampled; choose another folder with out=..."
            )
