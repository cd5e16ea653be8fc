"""What goes to other processes can be pickled; a datamodule keeps nothing of the folder before; datasets are read once."""

import hashlib
import json
import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
import torch
from analytic import arrays_of
from lightning.pytorch import Trainer

from invsolve.config.load import load
from invsolve.config.names import resolve, table
from invsolve.data.items import check_truth
from invsolve.diagnostics.problems import plane_problem
from invsolve.engine.chains import Chains
from invsolve.engine.observers import Residuals, Trajectory
from invsolve.errors import ConfigError
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonGaussianLikelihood, PoissonLikelihood
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.runs.lightning import MeasurementDataModule, ReconstructionModule, ReconstructionWriter, evaluate
from operators import Identity


def travelled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("group", ["noise", "sampler", "schedule"])
def test_every_component_of_a_group_travels(group):
    for name in table(group):
        made = resolve(group, name)(**({"values": [(1, 10), (1, 0)]} if name == "levels" else {}))
        again = travelled(made)
        assert type(again) is type(made) and repr(again) == repr(made), name


def test_priors_likelihoods_observers_problems_and_configurations_travel(work, prior):
    y = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    x = torch.tensor([[[[0.1, 0.2], [0.3, -0.4]]]], dtype=torch.float64)
    eye, A = torch.eye(4, dtype=torch.float64), Identity((1, 2, 2))
    likelihoods = [
        GaussianLikelihood(A, y, 0.1),
        PoissonLikelihood(A, y, 30),
        PoissonGaussianLikelihood(A, y, 30, 0.1),
    ]
    for likelihood in likelihoods:
        assert torch.equal(travelled(likelihood).discrepancy(x), likelihood.discrepancy(x))
    mean = torch.zeros(1, 2, 2, dtype=torch.float64)
    mixture = GaussianMixturePrior(torch.tensor([0.5, 0.5]).double(), torch.stack([mean, mean + 1]), torch.stack([eye, eye]))
    for made in (GaussianPrior(mean, eye), mixture, prior):
        assert torch.equal(travelled(made).draw(2, 0), made.draw(2, 0))
    for made in (Residuals(), Trajectory(every=2), Chains(), plane_problem("gaussian"), load("small.yaml")):
        assert type(travelled(made)) is type(made)
    module = travelled(ReconstructionModule.from_config(load("small.yaml"), prior))
    assert module.skip("i00") is False and module.config == ReconstructionModule.from_config(load("small.yaml"), prior).config
    assert travelled(ReconstructionWriter("runs/here")).out == "runs/here"
    assert travelled(MeasurementDataModule("photos")).section == MeasurementDataModule("photos").section


def sources(work):
    np.save(work / "y.npy", np.linspace(-1, 1, 768, dtype=np.float32).reshape(3, 16, 16))
    (work / "many").mkdir()
    np.savez(work / "many/a.npz", y=np.load(work / "y.npy"), id="named")
    np.save(work / "k.npy", np.exp(1j * np.arange(32 * 32)).reshape(32, 32).astype(np.complex64))
    return {
        "images": {"root": "photos", "indices": "0-1"},
        "crops": {"root": "photos", "indices": "0-1", "size": 8},
        "measurement": {"measurement": "many"},
        "mri_data": {"root": "k.npy", "scale": "max"},
        "phantom": {"indices": "0", "size": 32},
        "glyphs": {"indices": "0"},
    }


def test_the_items_of_every_source_travel(work):
    """With what they load, their digest and what the manifest says of them."""
    found = sources(work)
    assert set(found) == set(table("data")), "a new source of data belongs here"
    for name, values in [*found.items(), ("measurement", {"measurement": "y.npy"})]:
        for item in resolve("data", name)(**values).items():
            again = travelled(item)
            assert (again.id, again.path, again.image_shape, again.measured) == (item.id, item.path, item.image_shape, item.measured)
            np.testing.assert_array_equal(again.load(), item.load())
            assert again.digest() == item.digest() and again.facts() == item.facts()


class Drawn(torch.utils.data.Dataset):
    """Truths by a random transform: another array at every reading, which it counts."""

    def __init__(self, length=5):
        self.read, self.length, self.kept = [], length, {}

    def __len__(self):
        return self.length

    def __getitem__(self, k):
        if k >= self.length:
            raise IndexError(k)
        self.read.append(k)
        self.kept[k] = torch.rand(3, 16, 16) * 2 - 1
        return self.kept[k]


class Fixed(torch.utils.data.Dataset):
    """Of each kind one, and some that are none."""

    def __len__(self):
        return 7

    def __getitem__(self, k):
        x = torch.linspace(-1, 1, 768).reshape(3, 16, 16)
        return [
            x, (x.flip(-1), 3), {"y": x}, {"x": x / 2, "label": 1}, (x * 127.5 + 127.5).round().to(torch.uint8), x * 127.5 + 127.5, {}
        ][k]  # fmt: skip


def predict(prior, data, out):
    writer = ReconstructionWriter(out, panels=0)
    trainer = Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.predict(ReconstructionModule.from_config(load("small.yaml"), prior), datamodule=data, return_predictions=False)
    return writer.result


def test_an_element_is_read_once_and_hashed_as_it_was_used(work, prior):
    dataset = Drawn()
    data = MeasurementDataModule.from_dataset(dataset, batch=2)
    assert dataset.read == []
    result = predict(prior, data, "runs/drawn")
    assert sorted(dataset.read) == [0, 1, 2, 3, 4] and len(result.sampled) == 5
    images = json.loads((work / "runs/drawn/manifest.json").read_text())["images"]
    for k in range(5):
        x = np.load(work / f"runs/drawn/arrays/item-{k:06d}.npz")["x"]
        np.testing.assert_array_equal(x, dataset.kept[k].numpy())
        assert images[f"item-{k:06d}"]["input_sha256"] == hashlib.sha256(x.tobytes()).hexdigest()


def test_a_datamodule_keeps_nothing_of_the_folder_before(work, prior):
    """Finished, it is not read again; a new folder has it sampled anew; a folder with one missing takes the unit again, and says
    that another draw of it was finished before."""
    dataset = Drawn()
    data = MeasurementDataModule.from_dataset(dataset, batch=2)
    assert len(predict(prior, data, "runs/a").sampled) == 5
    dataset.read.clear()
    result = predict(prior, data, "runs/a")
    assert not result.sampled and len(result.skipped) == 5 and dataset.read == []
    assert len(predict(prior, data, "runs/b").sampled) == 5 and sorted(dataset.read) == [0, 1, 2, 3, 4]
    (work / "runs/b/records/item-000001.json").unlink()
    kept, _ = arrays_of(work / "runs/b"), dataset.read.clear()
    with pytest.warns(UserWarning, match=r"item-000000 is not what it was when it was sampled"):
        result = predict(prior, data, "runs/b")
    assert result.sampled == ["item-000001"] and dataset.read == [0, 1]
    assert arrays_of(work / "runs/b")["item-000000"] == kept["item-000000"]


def test_elements_of_any_kind_and_those_that_are_none(work, prior):
    """Truths and measurements side by side; bytes, bytes as floats, and one that cannot be read are failures of their ids."""
    result = predict(prior, MeasurementDataModule.from_dataset(Fixed(), batch=4), "runs/kinds")
    assert result.sampled == [f"item-{k:06d}" for k in range(4)] and list(result.failed) == [f"item-{k:06d}" for k in range(4, 7)]
    for k, words in ((4, "uint8, values 0 to 255"), (5, "values up to 255; a truth lies in [-1, 1]"), (6, "its keys are: none")):
        assert words in result.failed[f"item-{k:06d}"] and "\n" not in result.failed[f"item-{k:06d}"]
    with np.load(work / "runs/kinds/arrays/item-000002.npz") as stored:
        assert "x" not in stored and stored["y"].shape == (3, 16, 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not what it was")
        again = predict(prior, MeasurementDataModule.from_dataset(Fixed(), batch=4), "runs/kinds")
    assert again.sampled == [] and len(again.skipped) == 4 and again.failed == result.failed


@pytest.mark.parametrize("x", [np.zeros(3, np.uint8), np.zeros(3, np.int64), np.zeros(3, bool), np.full(3, 255.0), np.full(3, -17.0)])
def test_what_is_no_truth(x):
    with pytest.raises(ConfigError, match=r"here .*\[-1, 1\]"):
        check_truth(x, "here")


@pytest.mark.parametrize("x", [np.full(3, -1.0), np.full(3, 1.04, np.float32), np.zeros((0, 3)), np.full(3, 1j)])
def test_what_is_a_truth(x):
    check_truth(x, "here")


@pytest.mark.slow
def test_processes_that_are_spawned_read_ahead(work, prior, monkeypatch):
    """As on macOS and Windows: a stored measurement, and a dataset, give the bytes that they give without such a process."""
    sources(work)
    single = ["data.measurement=y.npy", "out=runs/none"]
    evaluate(load("small.yaml", single), prior, say=lambda line: None)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        single = [*single[:1], "trainer.workers=1", "out=runs/spawned"]
        assert not evaluate(load("small.yaml", single), prior, say=lambda line: None).failed
        result = predict(prior, MeasurementDataModule.from_dataset(Fixed(), batch=4, workers=1), "runs/kinds")
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert arrays_of(work / "runs/none") == arrays_of(work / "runs/spawned")
    assert len(result.sampled) == 4
    predict(prior, MeasurementDataModule.from_dataset(Fixed(), batch=4), "runs/here")
    assert arrays_of(work / "runs/kinds") == arrays_of(work / "runs/here")
