"""The finished images of a run folder and the operator that measured them, as far as reading alone goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.config.model import Config
from invsolve.errors import ConfigError
from invsolve.runs.digests import sha256_of
from invsolve.runs.stored import is_whole, load_run, records, refuse_changed
from invsolve.runs.task import likelihood_of
from operators.core.files import Unreadable, load_npz
from operators.core.picture import as_picture
from operators.core.trust import Untrusted, without_code


class StoredRun:
    """A run folder that is read: its configuration, its records by id, and those of its finished images.

    Nothing of it is executed: unless ``trust``, the file of a custom operator is not imported, and `code` says in words what of
    the results comes from the records instead. Raises ConfigError for a folder that is no run, for records of another
    configuration, and where a file that decided the results (a mask) has changed.
    """

    def __init__(self, folder: str | Path, trust: bool = False) -> None:
        self.folder, self.trust = Path(folder), trust
        self.config: Config = load_run(folder, trust)
        self.records = records(self.folder)
        # By length here; each is looked at whole when its arrays are read.
        self.finished = [id for id, record in self.records.items() if is_whole(self._file(id), record, thorough=False)]
        self.cut_off = [id for id, record in self.records.items() if "rows" in record and id not in set(self.finished)]
        self.noise = self.config.sections["noise"].build()
        self.code = ""
        self._operators: dict[tuple[int, ...], Any] = {}
        if len({str(self.records[id].get("weights")) for id in self.finished}) > 1:
            raise ConfigError(f"{folder}: its results came from different weights of the prior; sample it again into another folder")
        with without_code(not trust):
            for id in self.finished:
                refuse_changed(self.records[id], self.config, self.folder)

    def _file(self, id: str) -> Path:
        return self.folder / "arrays" / f"{id}.npz"

    def arrays(self, id: str, needed: Sequence[str], more: Sequence[str] = ()) -> dict[str, Tensor]:
        """The arrays of a finished id by name, those of ``more`` where they are there. Raises ConfigError for a damaged file."""
        path = self._file(id)
        held = read_arrays(path, needed, more)
        if self.records[id].get("sha256", "") not in ("", sha256_of(path)):
            raise ConfigError(_damaged(path, "its sha256 is not the one that its record holds"))
        return held

    def operator(self, shape: tuple[int, ...], id: str) -> Any:
        """The operator of an image; an `Unknown` where it is code that is not executed. Raises ConfigError."""
        if shape not in self._operators:
            with without_code(not self.trust):
                try:
                    self._operators[shape] = self.config.sections["operator"].build(image_shape=shape)
                except ConfigError as error:
                    if not any(isinstance(one, Untrusted) for one in _causes(error)):
                        raise
                    self._operators[shape] = Unknown()
                    self.code = (
                        "the operator is code that the run names, and was not executed: residuals are those of the records, and "
                        "nothing is aligned (--trust, or trust=True, executes it)"
                    )
        return self._operators[shape].for_ids([id])

    def residuals(self, operator: Any, y: Tensor, id: str) -> Callable[[str, Tensor], float | None]:
        """The residual of an image (C, H, W) in units of the noise, as called with its name in the records; None if unknown."""
        if isinstance(operator, Unknown):
            rows = self.records[id]["rows"]
            kept = {str(sample): float(value) for sample, metric, value in rows if metric == "residual"}
            return lambda name, image: kept.get(name)
        try:
            likelihood = likelihood_of(self.config, operator, y[None], self.noise)
        except ValueError as error:
            raise ConfigError(_damaged(self._file(id), " ".join(str(error).split()))) from error
        return lambda name, image: float(likelihood.discrepancy(image[None])[0])


class Unknown:
    """What stands for an operator that is not executed: it has no symmetries, and a measurement is shown as numbers."""

    def for_ids(self, ids: Sequence[str]) -> Unknown:
        """Itself."""
        return self

    def align(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """The estimate as it is."""
        return estimate

    def view(self, y: Tensor) -> Tensor:
        """`operators.core.picture.as_picture`."""
        return as_picture(y)


def read_arrays(path: Path, needed: Sequence[str], more: Sequence[str] = ()) -> dict[str, Tensor]:
    """The arrays of a file by name, those of ``more`` where they are there. Raises ConfigError for a damaged file.

    And for one that no run wrote: samples (n, C, H, W), everything else but y of the shape of one, all of them finite numbers in
    floating point, of which y alone may be complex.
    """
    try:
        held = load_npz(path, (*needed, *more))
        if absent := [key for key in needed if key not in held]:
            raise Unreadable(f"no array `{absent[0]}`")
        found = {key: torch.from_numpy(array) for key, array in held.items()}
    except (Unreadable, TypeError, ValueError) as error:  # types that torch does not know, and another byte order
        raise ConfigError(_damaged(path, " ".join(str(error).split()).removeprefix(f"{path} cannot be read: "))) from error
    shape = found["samples"].shape[1:] if "samples" in found else next(iter(found.values())).shape
    for key, array in found.items():
        wanted = key == "y" or (array.shape[1:] if key == "samples" else array.shape) == shape
        if not wanted or not array.numel() or (key != "y" and len(shape) != 3):
            raise ConfigError(_damaged(path, f"`{key}` has the shape {tuple(array.shape)}"))
        if not (array.is_floating_point() or (key == "y" and array.is_complex())):
            raise ConfigError(_damaged(path, f"`{key}` is of type {array.dtype}"))
        if not bool(array.isfinite().all()):
            raise ConfigError(_damaged(path, f"`{key}` holds NaN or infinity"))
    return found


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}); the command that wrote it samples its image again"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
