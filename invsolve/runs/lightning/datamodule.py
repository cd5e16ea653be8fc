"""The items of an evaluation as a LightningDataModule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from invsolve import ids
from invsolve.config import schema
from invsolve.config.model import Component, Config
from invsolve.config.names import names, resolve
from invsolve.config.settings import shard_of
from invsolve.data.items import Item, check_truth
from invsolve.engine import stopping
from invsolve.engine.stopping import in_reader
from invsolve.errors import ConfigError
from invsolve.runs.batch import Array, Batch, read
from invsolve.runs.units import units

_SUFFIXES = {".npz": "measurement", ".npy": "measurement", ".pt": "measurement", ".h5": "mri_data", ".hdf5": "mri_data", ".cfl": "mri_data"}
_FILE_KEYS = {"measurement": "measurement", "mri_data": "root", "images": "root"}


class MeasurementDataModule(LightningDataModule):
    """Images to be degraded, or stored measurements, in units of equal shape that are sampled together.

    Args:
        source: the data section of a configuration, {"name": ..., key: value}; or a file, folder or glob: images, stored
            measurements (.npz, .npy, .pt) or fastMRI volumes (.h5, .cfl), by the suffix. `from_dataset` takes a torch Dataset.
        batch: items sampled together. Units are cut from the whole list, so neither devices nor restarts change them.
        shard: "i/n" takes every n-th item from the i-th on; processes with i from 0 to n - 1 may write to one folder.
        workers: processes that read ahead.

    Each rank gets every world-size-th unit, none twice and none left out; the Trainer adds no sampler of its own.
    Raises ConfigError for a source that cannot be read; single files that cannot be read become failures of their ids.
    """

    def __init__(self, source: str | dict[str, Any] = "data/photos", batch: int = 4, shard: str | None = None, workers: int = 0) -> None:
        super().__init__()
        if batch < 1 or workers < 0:
            raise ConfigError(f"batch = {batch}, workers = {workers}: at least 1 and 0")
        shard_of(shard)
        self.source, self.batch, self.shard, self.workers = source, batch, shard, workers
        self.section = _section(source, shard)
        self.items: list[Item] = []
        self.todo: list[list[Item]] = []
        self._given: list[Item] | None = None

    @classmethod
    def from_config(cls, config: Config) -> MeasurementDataModule:
        """The data section, batch and shard of a configuration."""
        data = config.sections["data"]
        values = {key: value for key, value in data.values.items() if key != "shard"}
        return cls({"name": data.name, **values}, config.settings.batch, data.values.get("shard"), config.trainer.workers)

    @classmethod
    def from_dataset(
        cls, dataset: Any, ids: Sequence[str] | None = None, batch: int = 4, shard: str | None = None, workers: int = 0
    ) -> MeasurementDataModule:
        """The elements of a map-style torch Dataset, with ids item-000000, ... where none are given.

        An element is a truth (C, H, W) in [-1, 1], alone or first in a tuple; or a dict with "x" (a truth) or "y" (a measurement of
        an image of the same shape, or with "image_shape"). Each is read once a pass, when it is its turn, and its digest is that of
        the array that was used, so transforms may be random. Raises TypeError for a dataset without a length.
        """
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(f"{type(dataset).__name__} has no length or no items by number; a map-style Dataset is needed")
        names = [f"item-{k:06d}" for k in range(len(dataset))] if ids is None else [str(id) for id in ids]
        if len(names) != len(dataset) or len(set(names)) < len(names) or any(set(id) & set("/\\\0") or not id for id in names):
            raise ConfigError(f"{len(names)} ids for {len(dataset)} elements: one each is needed, all different and without a slash")
        module = cls(batch=batch, shard=shard, workers=workers)
        module.section = Component("data", "dataset", {"type": type(dataset).__name__, "length": len(dataset), "shard": shard})
        module._given = [_Element.of(dataset, k, name) for k, name in enumerate(names)]
        return module

    def setup(self, stage: str | None = None) -> None:
        """Lists the items, all of them still to be done: what a call before has finished is of its own folder."""
        first, step = shard_of(self.shard)
        found = self.section.build().items() if self._given is None else self._given
        self.items = ids.checked(found, f"data {self.section.name}")[first::step]
        self.todo = units(self.items, self.batch)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The units in `todo`, read; each rank gets its own."""
        trainer = self.trainer
        world, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        dataset = _Units(self.todo)
        share = _Share(dataset, world, rank)
        return DataLoader(dataset, batch_size=1, sampler=share, num_workers=self.workers, collate_fn=_only, worker_init_fn=in_reader)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves a unit where it is: what needs the device goes there when it is measured."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Joins what a reading process sent with the items themselves."""
        if not isinstance(batch, _Read):
            return batch
        by_id = {item.id: item for item in self.todo[batch.unit]} if batch.unit < len(self.todo) else {}
        items = [replace(by_id[id], **batch.learnt[id]) if id in batch.learnt else by_id[id] for id in batch.arrays]
        return Batch(items, list(batch.arrays.values()), batch.failed, batch.digests)


def _section(source: str | dict[str, Any], shard: str | None) -> Component:
    """The checked data section of a source."""
    if isinstance(source, str):
        name = _SUFFIXES.get(Path(source).suffix, "images")
        source = {"name": name, _FILE_KEYS[name]: source}
    if not isinstance(source.get("name"), str):
        raise ConfigError(f"source = {source!r}: a `name` is needed, one of {', '.join(names('data'))}")
    values = {key: value for key, value in source.items() if key != "name"}
    fields = schema.fields_of(resolve("data", source["name"]))
    return Component("data", source["name"], {**schema.check("data", source["name"], values, fields), "shard": shard})


# What code of a user's own may raise of an element that is damaged.
_UNREADABLE = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class _Element(Item):
    """Element ``index`` of a dataset, without a file; ``seen`` is the digest of its array, once that was read."""

    dataset: Any = field(default=None, repr=False)
    index: int = -1
    seen: str = ""

    @property
    def filed(self) -> bool:
        """False: a dataset may give another array at every reading, as random transforms do."""
        return False

    @classmethod
    def of(cls, dataset: Any, index: int, id: str) -> _Element:
        """The element before it is read: neither its shape nor its kind is known."""
        return cls(id, Path(f"dataset_{index}"), None, False, partial(dataset.__getitem__, index), dataset=dataset, index=index)

    def opened(self) -> Item:
        """The element as it was read: its shape, whether it is a measurement, and its digest. Raises ConfigError."""
        if self.seen:
            return self
        where = f"element {self.index} of the dataset"
        try:
            array, measured, shape = _parts(self.dataset[self.index])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except _UNREADABLE as error:
            raise ConfigError(f"{where} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
        if measured and array.dtype.kind not in "fciu":
            raise ConfigError(f"{where}: y has type {array.dtype}; numbers are needed")
        if not measured:
            check_truth(array, where)
            array = array.astype(np.float32)
        array = np.ascontiguousarray(array)
        seen = hashlib.sha256(array.tobytes()).hexdigest()
        return replace(self, image_shape=shape or array.shape, measured=measured, load=partial(np.asarray, array), seen=seen)

    def learnt(self) -> dict[str, Any]:
        """The fields that reading has set, save the array."""
        return {"image_shape": self.image_shape, "measured": self.measured, "seen": self.seen}

    def digest(self) -> str:
        """The sha256 of the array. Raises ConfigError where it cannot be read."""
        opened = self.opened()
        assert isinstance(opened, _Element)
        return opened.seen

    def read(self) -> tuple[Array, str]:
        """The array, read once, and its sha256. Raises ConfigError where it cannot be read."""
        opened = self.opened()
        assert isinstance(opened, _Element)
        return opened.load(), opened.seen


def _parts(held: Any) -> tuple[Array, bool, Any]:
    """(array, whether it is a measurement, image shape or None) of an element of a dataset."""
    shape = held.get("image_shape") if isinstance(held, dict) else None
    measured = isinstance(held, dict) and "x" not in held
    if measured and "y" not in held:
        raise ConfigError(f"a dict needs x (a truth) or y (a measurement); its keys are: {', '.join(map(str, held)) or 'none'}")
    chosen = (held["y"] if measured else held["x"]) if isinstance(held, dict) else held[0] if isinstance(held, (tuple, list)) else held
    if isinstance(chosen, torch.Tensor):
        chosen = chosen.detach().cpu()
        chosen = (chosen.float() if chosen.dtype == torch.bfloat16 else chosen).resolve_conj().numpy()
    return np.asarray(chosen), measured, None if shape is None else tuple(int(side) for side in shape)


@dataclass
class _Read:
    """What a reading process sends: the number of a unit, arrays by id, failures by id, and what elements turned out to be."""

    unit: int
    arrays: dict[str, Array]
    failed: dict[str, str]
    digests: dict[str, str]
    learnt: dict[str, dict[str, Any]]


class _Units(Dataset[Any]):
    """Units, read when they are asked for; the place after the last is an empty one."""

    def __init__(self, todo: list[list[Item]]) -> None:
        self.todo = todo

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, index: int) -> _Read:
        batch = read(self.todo[index] if index < len(self.todo) else [])
        learnt = {item.id: item.learnt() for item in batch.items if isinstance(item, _Element)}
        arrays = {item.id: array for item, array in zip(batch.items, batch.arrays, strict=True)}
        return _Read(index, arrays, batch.failed, batch.digests, learnt)


class _Share(DistributedSampler[Any]):
    """Every world-size-th unit, without the duplicates with which DistributedSampler pads: a rank that gets less gets an empty unit.

    All ranks thus pass the same hooks, also where there are fewer units than ranks.
    """

    def __init__(self, dataset: Dataset[Any], world: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        self.units: int = len(dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for place in range(len(self)):
            if stopping.requested() is not None:
                return  # as at the end: the ranks meet in the hooks that follow
            yield min(place * self.num_replicas + self.rank, self.units)

    def __len__(self) -> int:
        return max(1, -(-self.units // self.num_replicas))


def _only(batch: list[Any]) -> Any:
    return batch[0]
