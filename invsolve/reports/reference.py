"""The images that those of a run are held against as a set, cut and scaled as the run's own were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.data.crops import Crops
from invsolve.data.images import Images
from invsolve.errors import ConfigError
from invsolve.runs.stored import tree_of


class Reference:
    """The images of ``folder`` for the ``run`` in a folder; of other data than image files they are scaled and cut to ``shape`` (C, H, W).

    ``note`` says what was done to them where the run's configuration does not.
    """

    def __init__(self, folder: str | Path, run: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.note = folder, ""
        data: Any = tree_of(run).get("data")
        data = data if isinstance(data, dict) else {}
        self._source: Images | Crops
        if data.get("name") == "images":
            keys = ("size", "fit", "origin", "alpha", "channels")
            self._source = Images(str(folder), **{key: data[key] for key in keys if key in data})
        elif data.get("name") == "crops":
            self._source = Crops(str(folder), **{key: data[key] for key in ("size", "each", "reduce") if key in data})
        else:
            self._source = Images(str(folder), size=(shape[-2], shape[-1]))
            self.note = f", these scaled and cut to {shape[-2]} x {shape[-1]}, for data {data.get('name')} says nothing of image files"

    def __iter__(self) -> Iterator[Tensor]:
        """Images (C, H, W) in [-1, 1]. Raises ConfigError for one that cannot be read, or that is too small."""
        try:
            items = self._source.items()
        except ConfigError as error:
            raise ConfigError(f"--fid = {self.folder}: {error}") from error
        for item in items:
            if item.problem:
                raise ConfigError(f"--fid: {item.problem}")
            yield torch.from_numpy(item.load())
