"""Several processes, by Lightning's own launcher and by torchrun, give the arrays and tables of one."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from analytic import arrays_of

from invsolve.config.load import load
from invsolve.resources import resource
from invsolve.runs.lightning import evaluate

SCRIPT = Path(__file__).with_name("analytic.py")
PHOTO = resource("data", "priors", "photo", "unet")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(resource()), str(resource("tests"))]), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def called(*command, code=0):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=ENVIRONMENT, timeout=500)
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    return done


def test_two_processes_give_what_one_gives(work, prior):
    """Seven units for two ranks, one image that cannot be read; then a single unit, of which the second rank gets nothing."""
    (work / "photos/i05.png").write_bytes(b"no image")
    changes = ["trainer.devices=2", "trainer.strategy=ddp", "data.indices=0-18", "out=runs/two"]
    changes += ["trainer.panels=4", "trainer.report=true"]
    logs_pictures = importlib.util.find_spec("tensorboard") is not None
    changes += ["trainer.logger=tensorboard"] if logs_pictures else []
    done = called(SCRIPT, "small.yaml", *changes, code=1)
    evaluate(load("small.yaml", ["data.indices=0-18", "out=runs/one"]), prior, say=lambda line: None)
    assert arrays_of(work / "runs/two") == arrays_of(work / "runs/one") and len(arrays_of(work / "runs/two")) == 18
    assert (work / "runs/two/metrics.csv").read_bytes() == (work / "runs/one/metrics.csv").read_bytes()
    manifest = json.loads((work / "runs/two/manifest.json").read_text())
    assert list(manifest["failed"]) == ["i05"] and "i05" not in manifest["finished"], done.stderr
    # Rank 0 alone writes the report, with the other still of its process group; it is of the images of both.
    page = (work / "runs/two/report.html").read_text(encoding="utf-8")
    assert all(f"i{k:02d}" in page for k in range(19)) and "18 of 19 images" in page and "Coverage of intervals" in page
    if logs_pictures:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        # The fourth image was sampled by the second rank.
        (logs,) = (work / "runs/two/logs").iterdir()
        assert EventAccumulator(str(logs)).Reload().Tags()["images"] == [f"panel/i0{k}" for k in range(4)]
    for id in ("i00", "i04"):
        (work / f"runs/two/records/{id}.json").unlink()
    called(SCRIPT, "small.yaml", *changes, code=1)
    assert arrays_of(work / "runs/two") == arrays_of(work / "runs/one")
    if not logs_pictures:
        pytest.skip("all but the panels of both ranks in the logger was checked: tensorboard is not installed")


def test_two_nodes_by_torchrun(work, prior):
    """Two agents on loopback, one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    changes = ["small.yaml", "data.indices=0-9", "trainer.num_nodes=2", "trainer.strategy=ddp", "out=runs/nodes"]
    nodes = [
        subprocess.Popen(
            [sys.executable, *common, f"--node-rank={rank}", str(SCRIPT), *changes],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [node.communicate(timeout=500)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    evaluate(load("small.yaml", ["data.indices=0-9", "out=runs/one"]), prior, say=lambda line: None)
    assert arrays_of(work / "runs/nodes") == arrays_of(work / "runs/one")
    assert (work / "runs/nodes/metrics.csv").read_bytes() == (work / "runs/one/metrics.csv").read_bytes()


@pytest.mark.skipif(not PHOTO.is_dir(), reason="the weights of the shipped prior are not there")
def test_the_photo_prior_by_the_command(work):
    """Two processes, three shards, batch 1 and batch 8, to the rounding of a network."""
    photo = ["small.yaml", "prior=photo", "data.indices=0-4", "schedule.steps=3"]
    called("-m", "invsolve", "eval", *photo, "trainer.devices=2", "trainer.strategy=ddp", "batch=1", "out=runs/two")
    for k in range(3):
        evaluate(load(photo[0], [*photo[1:], f"data.shard={k}/3", "out=runs/shards"]), say=lambda line: None)
    evaluate(load(photo[0], [*photo[1:], "batch=8", "out=runs/eight"]), say=lambda line: None)
    for id in arrays_of(work / "runs/eight"):
        found = [np.load(work / f"runs/{name}/arrays/{id}.npz")["samples"] for name in ("two", "shards", "eight")]
        np.testing.assert_allclose(found[0], found[2], atol=1e-4)
        np.testing.assert_allclose(found[1], found[2], atol=1e-4)
