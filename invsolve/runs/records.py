"""What is stored of a finished id, and how it is read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invsolve.runs.stored import read_json


class Row(NamedTuple):
    """One line of metrics.csv."""

    id: str
    sample: str
    metric: str
    value: float


def _rows_of(record: Mapping[str, Any]) -> list[Row]:
    return [Row(record["id"], sample, metric, float(value)) for sample, metric, value in record.get("rows", [])]


def mean_of(rows: Iterable[Row], metric: str, of_mean: bool) -> float | None:
    """The average of a metric over ids: of the posterior means, or of the single samples; None where there is none."""
    values = [row.value for row in rows if row.metric == metric and (row.sample == "mean") == of_mean]
    return float(np.mean(values)) if values else None


def read_manifest(path: Path) -> dict[str, Any]:
    """manifest.json of a run folder; {} where there is none, or what a machine that stopped left of it: `gather` makes it again."""
    stored = read_json(path / "manifest.json")
    return dict(stored) if isinstance(stored, dict) else {}
