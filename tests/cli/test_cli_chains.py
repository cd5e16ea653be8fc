"""`invsolve run` with a sampler that runs chains: the mean is the chains' own, and whether they have mixed is said."""

import csv
import json

import numpy as np

CHAIN = ("sampler=pnp_ula", "sampler.level=0.2", "sampler.start=noise", "data.indices=0-1")


def test_a_run_reports_on_its_chains(small, cli, work):
    outcome = cli("run", small, *CHAIN, "sampler.steps=40")
    assert outcome.code == 0 and outcome.err == ""
    assert "a: NOT MIXED: 3 x 32 draws kept" in outcome.out and "b: NOT MIXED" in outcome.out
    folder = work / "runs/small"
    with (folder / "metrics.csv").open(newline="") as file:
        found = {(line["id"], line["metric"]): float(line["value"]) for line in csv.DictReader(file) if line["sample"] == "chains"}
    assert {metric for id, metric in found if id == "a"} == {"ess", "r_hat", "iact_slow", "iact_fast", "delta"}
    assert found["a", "r_hat"] > 1.1 and found["a", "delta"] > 0
    assert json.loads((folder / "manifest.json").read_text())["images"]["a"]["chains"].startswith("NOT MIXED")
    with np.load(folder / "arrays/a.npz", allow_pickle=False) as stored:
        # Thirty-two iterates a chain: their mean is not that of the three last.
        assert stored["mean"].shape == stored["std"].shape == (3, 16, 16)
        assert np.abs(stored["mean"] - stored["samples"].mean(0)).max() > 0.05 and stored["std"].min() > 0


def test_chains_that_have_mixed_are_called_so(small, cli):
    outcome = cli("run", small, *CHAIN, "sampler.steps=1500", "sampler.level=0.5", "noise.sigma=0.5", "data.indices=0")
    assert outcome.code == 0 and "a: the chains have mixed: 3 x 1200 draws kept" in outcome.out


def test_an_interrupted_run_has_the_same_report(small, cli, work, monkeypatch):
    whole = cli("run", small, *CHAIN, "sampler.steps=40", "out=runs/whole")
    import invsolve.samplers.pnp_ula as module

    original, calls = module.PnPULA.step, [0]

    def stop(self, *args):
        calls[0] += 1
        if calls[0] == 25:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(module.PnPULA, "step", stop)
    assert cli("run", small, *CHAIN, "sampler.steps=40", "checkpoint_every=10").code != 0
    monkeypatch.setattr(module.PnPULA, "step", original)
    resumed = cli("run", small, *CHAIN, "sampler.steps=40", "checkpoint_every=10")
    assert [line for line in resumed.out.splitlines() if "MIXED" in line] == [line for line in whole.out.splitlines() if "MIXED" in line]
    text = (work / "runs/small/metrics.csv").read_text()
    assert text == (work / "runs/whole/metrics.csv").read_text()
