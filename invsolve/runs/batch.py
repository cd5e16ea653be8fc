"""Items that are sampled together, and reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from invsolve.data.items import Item
from invsolve.errors import ConfigError
from invsolve.runs.intake import read_item

Array = NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Items that have been read: their arrays (truths x, or stored measurements y), and those that could not be, by id.

    ``digests`` holds by id the sha256 of what was read.
    """

    items: list[Item]
    arrays: list[Array]
    failed: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def read(items: Sequence[Item]) -> Batch:
    """Reads the arrays of items; one that `read_item` refuses is named in ``failed`` and left out."""
    batch = Batch([], [])
    for item in items:
        try:
            item, array, digest = read_item(item)
        except ConfigError as error:
            batch.failed[item.id] = str(error)
        else:
            batch.items.append(item)
            batch.arrays.append(array)
            batch.digests[item.id] = digest
    return batch
