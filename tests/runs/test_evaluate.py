"""An evaluation is the same whatever the batch, the shards, the restarts, and whoever brings the Trainer."""

import contextlib
import csv
import gc
import io
import json
import random
import sys
import time
import tracemalloc
import types
import unittest.mock
import weakref

import numpy as np
import pytest
import torch
from analytic import arrays_of
from lightning.pytorch import Trainer
from PIL import Image

from invsolve.config.load import load
from invsolve.errors import ConfigError
from invsolve.runs.lightning import MeasurementDataModule, ReconstructionModule, ReconstructionWriter, evaluate
from invsolve.runs.lightning.datamodule import _Share, _Units
from invsolve.runs.local import run


def quiet(config, prior):
    return evaluate(config, prior, say=lambda line: None)


def samples(folder):
    return {path.stem: np.load(path)["samples"] for path in sorted((folder / "arrays").iterdir())}


def test_an_evaluation_is_the_run_of_its_configuration(work, prior):
    config = load("small.yaml", ["data.indices=0-6"])
    result = quiet(config, prior)
    assert result.sampled == [f"i{k:02d}" for k in range(7)] and not result.failed and result.rows
    run(load("small.yaml", ["data.indices=0-6", "out=runs/run"]), prior, say=lambda line: None)
    assert arrays_of(work / "runs/small") == arrays_of(work / "runs/run")
    assert (work / "runs/small/metrics.csv").read_bytes() == (work / "runs/run/metrics.csv").read_bytes()
    trees = [load(work / f"runs/{name}/config.yaml").as_dict() for name in ("small", "run")]
    assert trees[0] | {"out": None} == trees[1] | {"out": None}


def test_batch_shards_and_order_do_not_matter(work, prior):
    quiet(load("small.yaml", ["batch=8", "out=runs/eight"]), prior)
    quiet(load("small.yaml", ["batch=1", "out=runs/one"]), prior)
    for shard in (2, 0, 1):
        result = quiet(load("small.yaml", ["out=runs/shards", f"data.shard={shard}/3"]), prior)
        assert len(result.sampled) == 8
    first = samples(work / "runs/eight")
    assert len(first) == 24
    for other in ("one", "shards"):
        for id, array in samples(work / f"runs/{other}").items():
            np.testing.assert_array_equal(array, first[id])
        assert (work / f"runs/{other}/metrics.csv").read_bytes() == (work / "runs/eight/metrics.csv").read_bytes()
    # The folder is that of the whole evaluation, whichever shard began it.
    assert "shard: null" in (work / "runs/shards/config.yaml").read_text()
    assert len(quiet(load("runs/shards/config.yaml"), prior).skipped) == 24


@pytest.mark.parametrize("text", ["3/3", "1", "-1/2", "a/b", "0/0"])
def test_a_shard_that_is_none_is_refused(work, text):
    with pytest.raises(ConfigError, match="data.shard = .*expected i/n with i from 0 to n - 1"):
        load("small.yaml", [f"data.shard={text}"])


def test_killed_ten_times_and_whole_in_the_end(work, prior, forked):
    """Kill -9 at ten random moments: before the first batch, within batches, between them, and while files are written."""
    changes, moments = ["batch=2", "schedule.steps=20"], random.Random(0)
    start = time.monotonic()
    assert forked(lambda: bool(quiet(load("small.yaml", [*changes, "out=runs/whole"]), prior).failed)).wait() == 0
    unit = (time.monotonic() - start) / 12
    config, left, killed = load("small.yaml", [*changes, "out=runs/killed"]), [0], 0
    for _ in range(10):
        child = forked(lambda: bool(quiet(config, prior).failed))
        wanted, end = left[-1] + moments.randint(0, 1), time.monotonic() + 60
        while len(list((work / "runs/killed").glob("records/i??.json"))) < wanted and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, unit / 3))
        killed += child.kill()
        left.append(len(list((work / "runs/killed").glob("records/i??.json"))))
    assert left == sorted(left) and left[-1] > 0 and killed >= 8, (left, killed)
    assert forked(lambda: bool(quiet(config, prior).failed)).wait() == 0
    assert arrays_of(work / "runs/killed") == arrays_of(work / "runs/whole")
    ids = [f"i{k:02d}" for k in range(24)]
    assert json.loads((work / "runs/killed/manifest.json").read_text())["finished"] == ids
    with (work / "runs/killed/metrics.csv").open(newline="") as file:
        rows = [(row["id"], row["sample"], row["metric"]) for row in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == 24 * 3 * 3 and sorted({row[0] for row in rows}) == ids
    assert (work / "runs/killed/metrics.csv").read_bytes() == (work / "runs/whole/metrics.csv").read_bytes()


def test_a_kill_costs_at_most_the_batch_in_flight(work, prior, monkeypatch):
    """Two of a batch of three were written when the process died: all three are sampled again, and one is written."""
    config = load("small.yaml", ["data.indices=0-5"])
    quiet(config, prior)
    before = arrays_of(work / "runs/small")
    times = {id: (work / f"runs/small/arrays/{id}.npz").stat().st_mtime_ns for id in before}
    for kind in ("arrays/i04.npz", "records/i04.json"):
        (work / "runs/small" / kind).unlink()
    from invsolve.runs import task

    seen, original = [], task.sample
    monkeypatch.setattr(task, "sample", lambda *args, ids, **options: seen.append(ids) or original(*args, ids=ids, **options))
    assert quiet(config, prior).sampled == ["i04"] and seen == [["i03", "i04", "i05"]]
    assert arrays_of(work / "runs/small") == before
    assert {id for id, then in times.items() if (work / f"runs/small/arrays/{id}.npz").stat().st_mtime_ns != then} == {"i04"}


def test_a_trainer_and_a_dataset_of_ones_own(work, prior):
    """Lightning's default inference mode, predictions returned, a torch dataset; no folder but the writer's."""
    truths = torch.stack([torch.from_numpy(item.load()) for item in load("small.yaml", ["data.indices=0-4"]).items()])
    dataset = torch.utils.data.TensorDataset(truths, torch.arange(5))
    ids = [f"i{k:02d}" for k in range(5)]
    config = load("small.yaml", ["data.indices=0-4", "out=runs/cli"])
    quiet(config, prior)
    data = MeasurementDataModule.from_dataset(dataset, ids=ids, batch=3)
    writer = ReconstructionWriter("runs/mine", panels=1)
    trainer = Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_progress_bar=False, enable_model_summary=False)
    outcomes = trainer.predict(ReconstructionModule.from_config(config, prior), datamodule=data)
    assert [done.item.id for outcome in outcomes for done in outcome.done] == ids
    assert writer.result.sampled == ids and not writer.result.failed
    assert arrays_of(work / "runs/mine") == arrays_of(work / "runs/cli")
    assert [path.name for path in (work / "runs/mine/images").iterdir()] == ["i00"]


def test_plain_constructors_and_a_source_by_its_suffix(work):
    module = ReconstructionModule("photo", {"name": "gaussian_blur", "std": 2.0}, "gaussian", samples=3)
    assert module.config.settings.samples == 3 and module.hparams.operator["std"] == 2.0
    assert module.config.sections["schedule"].name == "ddpm" and module.config.sections["operator"].values["std"] == 2.0
    for source, name in (("photos", "images"), ("photos/i0*.png", "images"), ("y/*.npz", "measurement"), ("one.npy", "measurement")):
        assert MeasurementDataModule(source).section.name == name
    assert MeasurementDataModule({"name": "mri_data", "root": "v.h5", "scale": "max"}).section.values["scale"] == "max"
    data = MeasurementDataModule("photos", batch=5, shard="1/2")
    data.setup()
    assert [len(unit) for unit in data.todo] == [5, 5, 2] and data.items[0].id == "i01"
    with pytest.raises(ConfigError, match="data.scale is missing"):
        MeasurementDataModule("volume.h5")
    with pytest.raises(ConfigError, match="unknown operator"):
        ReconstructionModule("photo", "blurr", "gaussian")
    with pytest.raises(TypeError, match="map-style Dataset"):
        MeasurementDataModule.from_dataset(iter([1]))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_ranks_share_units_without_doubling_or_losing_any(world, count):
    dataset = _Units([[]] * count)
    shares = [list(_Share(dataset, world, rank)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) >= 1
    assert sorted(place for share in shares for place in share if place < count) == list(range(count))


def test_what_reads_ahead_changes_nothing(work, prior):
    quiet(load("small.yaml", ["data.indices=0-4"]), prior)
    quiet(load("small.yaml", ["data.indices=0-4", "trainer.workers=1", "out=runs/ahead"]), prior)
    assert arrays_of(work / "runs/small") == arrays_of(work / "runs/ahead")


def test_stored_measurements_in_a_folder(work, prior):
    config = load("small.yaml", ["data.indices=0-2"])
    quiet(config, prior)
    (work / "y").mkdir()
    for id in ("i00", "i01", "i02"):
        np.savez(work / f"y/{id}.npz", y=np.load(work / f"runs/small/arrays/{id}.npz")["y"])
    quiet(load("small.yaml", ["data.measurement=y", "out=runs/measured"]), prior)
    first = samples(work / "runs/small")
    for id, array in samples(work / "runs/measured").items():
        np.testing.assert_array_equal(array, first[id])


def test_loggers_get_numbers_and_panels(work, prior):
    from lightning.pytorch.loggers import CSVLogger

    class Recorder(CSVLogger):
        def __init__(self):
            super().__init__("elsewhere")
            self.numbers, self.pictures = [], []

        def log_metrics(self, metrics, step=None):
            self.numbers.append((step, metrics))

        def log_image(self, key, images, step=None):
            self.pictures.append((key, images))

    config = load("small.yaml", ["data.indices=0-3", "out=runs/logged"])
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu", callbacks=[ReconstructionWriter("runs/logged", panels=2)], logger=recorder, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.predict(ReconstructionModule.from_config(config, prior), datamodule=MeasurementDataModule.from_config(config))
    assert [step for step, _ in recorder.numbers] == [3, 4] and recorder.numbers[0][1]["mean/psnr"] > 5
    assert [key for key, _ in recorder.pictures] == ["panel/i00", "panel/i01"]


def test_tensorboard_holds_numbers_and_panels(work, prior):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quiet(load("small.yaml", ["data.indices=0-3", "trainer.logger=tensorboard", "trainer.panels=2"]), prior)
    (folder,) = (work / "runs/small/logs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    found = [(one.step, one.value) for one in events.Scalars("mean/psnr")]
    with (work / "runs/small/metrics.csv").open(newline="") as file:
        psnr = [float(row["value"]) for row in csv.DictReader(file) if row["sample"] == "mean" and row["metric"] == "psnr"]
    assert found == [(3, pytest.approx(np.mean(psnr[:3]), rel=1e-5)), (4, pytest.approx(psnr[3], rel=1e-5))]
    assert events.Tags()["images"] == ["panel/i00", "panel/i01"]
    for id in ("i00", "i01"):
        (logged,) = events.Images(f"panel/{id}")
        ours = Image.open(work / f"runs/small/images/{id}/panel.png").convert("RGB")
        theirs = Image.open(io.BytesIO(logged.encoded_image_string)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))


def test_wandb_holds_numbers_and_panels(work, prior, monkeypatch):
    """Lightning's own logger, with a stand-in for the client, which would need an account."""
    logged = []
    run = types.SimpleNamespace(log=logged.append, define_metric=lambda *names, **options: None, config=unittest.mock.Mock())
    names = {"wandb": {}, "wandb.sdk": {}, "wandb.sdk.lib": {"RunDisabled": type("RunDisabled", (), {})}}
    names |= {"wandb.wandb_run": {"Run": types.SimpleNamespace}}
    for name, held in names.items():
        module = types.ModuleType(name)
        module.__dict__.update(held)
        monkeypatch.setitem(sys.modules, name, module)
    client = sys.modules["wandb"]
    client.run, client.init, client.Image = None, lambda **options: run, lambda path: ("image", path)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    quiet(load("small.yaml", ["data.indices=0-3", "trainer.logger=wandb", "trainer.panels=1"]), prior)
    assert [one["trainer/global_step"] for one in logged if "mean/psnr" in one] == [3, 4]
    pictures = [one for one in logged if any(key.startswith("panel/") for key in one)]
    assert pictures == [{"panel/i00": [("image", "runs/small/images/i00/panel.png")], "trainer/global_step": 3}]


def test_bf16_is_the_networks_alone(work):
    """The Trainer's precision reaches the prior's network and the folder's identity; measurements stay in single precision."""
    changes = ["prior=photo", "data.indices=0", "schedule.steps=2", "samples=1"]
    config = load("small.yaml", [*changes, "out=runs/bf16"])
    for precision in ("bf16-mixed", "bf16-true"):
        trainer = Trainer(
            accelerator="cpu", precision=precision, callbacks=[ReconstructionWriter(f"runs/{precision}")], logger=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.predict(ReconstructionModule.from_config(config), datamodule=MeasurementDataModule.from_config(config))
        assert "precision: bf16" in (work / f"runs/{precision}/config.yaml").read_text()
    run(load("small.yaml", [*changes, "prior.precision=bf16", "out=runs/run"]), say=lambda line: None)
    run(load("small.yaml", [*changes, "out=runs/single"]), say=lambda line: None)
    found = {name: np.load(work / f"runs/{name}/arrays/i00.npz") for name in ("bf16-mixed", "bf16-true", "run", "single")}
    for name in ("bf16-mixed", "bf16-true"):
        np.testing.assert_array_equal(found[name]["samples"], found["run"]["samples"])
        np.testing.assert_array_equal(found[name]["y"], found["single"]["y"])
    assert np.abs(found["run"]["samples"] - found["single"]["samples"]).max() > 0
    with pytest.raises(ConfigError, match="bf16-mixed"):
        Trainer(accelerator="cpu", precision="64-true", logger=False, enable_progress_bar=False, enable_model_summary=False).predict(
            ReconstructionModule.from_config(config), datamodule=MeasurementDataModule.from_config(config)
        )


def array_bytes():
    """Bytes of all arrays of numpy and tensors of torch that are alive; small objects of Python do not count."""
    gc.collect()
    domain = np.lib.tracemalloc_domain
    traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, domain)]).traces
    # Not of the tensors without data that torch's compiler leaves behind it.
    kinds = (torch.Tensor, torch.nn.Parameter)
    alive = [one.untyped_storage() for one in gc.get_objects() if type(one) in kinds and one.layout == torch.strided and not one.is_meta]
    storages = {}
    for one in alive:
        with contextlib.suppress(RuntimeError):  # "Cannot access data pointer"
            storages[one.data_ptr()] = one.nbytes()
    return sum(trace.size for trace in traces) + sum(storages.values())


def test_memory_does_not_grow_with_the_number_of_images(work, prior, monkeypatch):
    """When the third, fifth and last of eight batches are written the same bytes are alive, to less than one image's samples.

    And of the arrays of a batch nothing is left when the next but one is written.
    """
    from invsolve.runs.writer import Writer

    held, alive, batches, store = [], [], [], Writer.store

    def measured(self, outcome):
        batches.append([weakref.ref(one) for done in outcome.done for one in (done, done.samples, done.aligned, done.mean, done.y)])
        result = store(self, outcome)
        gc.collect()
        alive.append([any(one() is not None for one in batch) for batch in batches])
        if len(batches) in (3, 5, 8):
            held.append(array_bytes())
        return result

    monkeypatch.setattr(Writer, "store", measured)
    tracemalloc.start()
    try:
        quiet(load("small.yaml", ["samples=8"]), prior)
    finally:
        tracemalloc.stop()
    assert len(batches) == 8 and not any(any(one[:-2]) for one in alive), alive
    assert len(held) == 3 and max(held) - min(held) < 8 * 3 * 16 * 16 * 4, held


def test_lightning_cli_builds_all_three(work, prior, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse[signatures]")
    pytest.importorskip("docstring_parser", reason="LightningCLI needs jsonargparse[signatures]")
    from lightning.pytorch.cli import LightningCLI

    def load_prior(name, *, device="auto", precision: str = "float32"):
        return prior

    monkeypatch.setattr("invsolve.load_prior", load_prior, raising=False)
    (work / "cli.yaml").write_text(
        """\
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  callbacks:
    - class_path: invsolve.runs.lightning.ReconstructionWriter
      init_args: {out: runs/lightning, panels: 0}
model:
  prior: any
  operator: {name: gaussian_blur, std: 1}
  noise: {name: gaussian, sigma: 0.05}
  schedule: {name: ddpm, steps: 5}
  sampler: {name: dps, zeta: 0.3}
  samples: 2
data:
  source: {name: images, root: photos, size: 16, fit: crop, indices: 0-3}
  batch: 3
return_predictions: false
"""
    )
    LightningCLI(
        ReconstructionModule, MeasurementDataModule, args=["predict", "--config", "cli.yaml"], seed_everything_default=False,
        save_config_callback=None,
    )  # fmt: skip
    quiet(load("small.yaml", ["data.indices=0-3"]), prior)
    assert arrays_of(work / "runs/lightning") == arrays_of(work / "runs/small")
