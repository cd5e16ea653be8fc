"""A signal ends a run after the step that it is at: exit code 128 + its number, nothing finished lost, and the same bytes in the end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from analytic import arrays_of

from invsolve import Posterior, sample
from invsolve.cli.main import main
from invsolve.config.load import load
from invsolve.engine import stopping
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.resources import resource
from invsolve.runs.lightning import evaluate
from invsolve.runs.lightning.ranks import _Meeting
from invsolve.runs.local import run
from invsolve.samplers import DPS
from invsolve.schedules import DDPM
from operators import Identity

SCRIPT = Path(__file__).with_name("analytic.py")
STEPS = 12
SMALL = ["small.yaml", "data.indices=0-8", f"schedule.steps={STEPS}", "checkpoint_every=1000"]


def handlers():
    return [signal.getsignal(signum) for signum in stopping.SIGNALS]


@pytest.fixture
def at_call(work, prior, monkeypatch):
    """The analytic prior in place of the configured one, and something that is done at its n-th call."""
    monkeypatch.setattr("invsolve.load_prior", lambda name, *, device="auto": prior, raising=False)
    monkeypatch.setattr("invsolve.pictures.panels.save_panel", lambda shown, path: path.write_bytes(b"drawing takes most of the time"))
    original, made = type(prior).denoise, []

    def do(number, what):
        def denoise(self, *args, **more):
            made.append(0)
            if len(made) == number:
                what()
            return original(self, *args, **more)

        monkeypatch.setattr(type(prior), "denoise", denoise)

    return do


def ask(signum):
    return lambda: os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", stopping.SIGNALS, ids=lambda signum: signum.name)
@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_signal_ends_the_step_and_the_same_command_goes_on(work, at_call, capsys, command, signum):
    """In the second of three units: the first is written, the step is finished and saved, the third is never begun."""
    before = handlers()
    at_call(STEPS + 7, ask(signum))
    assert main([command, *SMALL]) == 128 + signum
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].endswith("the same command goes on with what is not finished")
    assert ("interrupted" if signum == signal.SIGINT else signum.name) in told[0]
    assert handlers() == before
    folder = work / "runs/small"
    assert sorted(arrays_of(folder)) == ["i00", "i01", "i02"] and not list(folder.rglob(".*"))
    assert json.loads((folder / "manifest.json").read_text())["finished"] == ["i00", "i01", "i02"]
    (partial,) = (folder / "partial").glob("*.pt")
    assert torch.load(partial, weights_only=True)["running"][1] == 7
    assert main([command, *SMALL]) == 0
    assert main([command, *SMALL, "out=runs/whole"]) == 0
    assert arrays_of(folder) == arrays_of(work / "runs/whole") and len(arrays_of(folder)) == 9
    assert (folder / "metrics.csv").read_bytes() == (work / "runs/whole/metrics.csv").read_bytes()


@pytest.mark.parametrize("command", ["run", "eval"])
def test_without_checkpoints_the_unit_is_begun_again(work, at_call, command):
    at_call(STEPS + 7, ask(signal.SIGTERM))
    changes = [*SMALL[:-1], "checkpoint_every=0"]
    assert main([command, *changes]) == 143
    assert not list((work / "runs/small").glob("partial/*"))
    assert main([command, *changes]) == 0 and main([command, *changes, "out=runs/whole"]) == 0
    assert arrays_of(work / "runs/small") == arrays_of(work / "runs/whole")


@pytest.mark.parametrize("command", ["run", "eval"])
def test_the_last_step_of_all_is_not_too_late(work, at_call, command):
    """What was asked for is finished, and the code still says that the process was told to stop."""
    at_call(3 * STEPS, ask(signal.SIGTERM))
    assert main([command, *SMALL]) == 143
    assert len(arrays_of(work / "runs/small")) == 9 and not list((work / "runs/small").glob("partial/*"))


@pytest.mark.parametrize("command", ["run", "eval"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_while_the_model_is_loaded_a_signal_is_followed_at_once(work, monkeypatch, command, signum):
    before = handlers()

    def loading(name, *, device="auto"):
        os.kill(os.getpid(), signum)
        for _ in range(1000):
            time.sleep(0.01)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("invsolve.load_prior", loading, raising=False)
    assert main([command, *SMALL]) == 128 + signum
    assert handlers() == before and not (work / "runs/small").exists()


def test_an_interrupt_that_no_handler_saw_is_said_too(work, at_call, capsys):
    """Lightning would make it exit code 1, and leave Ctrl-C without effect."""
    before = handlers()

    def interrupt():
        raise KeyboardInterrupt

    at_call(STEPS + 7, interrupt)
    assert main(["eval", *SMALL]) == 130
    assert "interrupted" in capsys.readouterr().err and handlers() == before
    assert sorted(arrays_of(work / "runs/small")) == ["i00", "i01", "i02"]


@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_second_signal_stops_at_once_and_the_same_bytes_follow(work, at_call, forked, command):
    """In the middle of a step that would never end. Two within a moment (from `timeout`, or a launcher) are one."""

    def stuck():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.7)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1000)

    at_call(STEPS + 7, stuck)
    assert forked(lambda: main([command, *SMALL])).wait(30) == 143
    assert not list((work / "runs/small").glob("partial/*"))
    at_call(0, stuck)
    assert main([command, *SMALL]) == 0 and main([command, *SMALL, "out=runs/whole"]) == 0
    assert arrays_of(work / "runs/small") == arrays_of(work / "runs/whole")


def test_who_has_handlers_of_his_own_keeps_them(work, at_call, prior):
    """An ignored SIGHUP (nohup) stays ignored, a handler of the caller's is called, and `sample` installs none."""
    heard, seen = [], []
    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: heard.append(1))]
    try:
        at_call(STEPS + 7, lambda: [ask(signal.SIGHUP)(), ask(signal.SIGTERM)()])
        assert main(["run", *SMALL]) == 0 and heard == [1]
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])
    y = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    target = Posterior(prior, GaussianLikelihood(Identity((3, 16, 16)), y, 0.1))
    usual = handlers()
    sample(DPS(zeta=0.3), target, DDPM(steps=2), progress=False, observe=lambda event: seen.append(handlers()))
    assert seen == [usual, usual]


def test_in_a_thread_there_are_no_handlers_to_install(work, prior):
    found = []

    def both():
        found.append(evaluate(load("small.yaml", ["data.indices=0", "out=runs/a"]), prior, say=lambda line: None).failed)
        found.append(run(load("small.yaml", ["data.indices=0", "out=runs/b"]), prior, say=lambda line: None).failed)

    thread = threading.Thread(target=both)
    thread.start()
    thread.join(60)
    assert found == [{}, {}]


def test_ranks_hear_of_each_other_also_while_one_waits():
    """One is done and waits when it is asked to stop; the other hears of it between steps, and both then know."""
    store = torch.distributed.HashStore()
    watches = [stopping.Watch(), stopping.Watch()]
    meetings = [_Meeting(store, "here", 2) for _ in watches]
    for watch, meeting in zip(watches, meetings, strict=True):
        watch.others = meeting.tell
    waiting = threading.Thread(target=meetings[0].wait, args=(watches[0],))
    waiting.start()
    assert watches[1].requested() is None
    watches[0].signum = int(signal.SIGTERM)  # what the handler does
    end = time.monotonic() + 20
    while watches[1].requested() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert watches[1].signum == signal.SIGTERM and waiting.is_alive()
    meetings[1].wait(watches[1])
    waiting.join(20)
    assert not waiting.is_alive() and watches[0].signum == signal.SIGTERM


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_strategies_that_keep_their_results_are_refused_in_a_line(work, capsys, strategy):
    assert main(["eval", *SMALL, "trainer.devices=2", f"trainer.strategy={strategy}", "trainer.accelerator=cpu"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and f"trainer.strategy = {strategy}" in told[0] and "use ddp" in told[0]
    assert not (work / "runs/small").exists()


def alive(pid):
    """Whether a process still runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found by /proc")
@pytest.mark.parametrize("whom", ["launcher", "rank 1", "group"])
def test_a_signal_to_one_rank_ends_all(work, prior, whom):
    """At a moment that nobody chose, once both ranks are at work: all end within seconds, and the same bytes follow."""
    changes = ["small.yaml", "trainer.devices=2", "trainer.strategy=ddp", "checkpoint_every=1", "schedule.steps=40"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(resource()), str(resource("tests"))]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *changes, "out=runs/two"]
    launcher = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        folder, end = work / "runs/two", time.monotonic() + 300
        while len(list(folder.glob("partial/*.pt"))) < 2 and launcher.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        rank = next(int(pid) for pid in children if SCRIPT.name in Path(f"/proc/{pid}/cmdline").read_text())
        if whom == "group":
            os.killpg(launcher.pid, signal.SIGTERM)
        else:
            os.kill(launcher.pid if whom == "launcher" else rank, signal.SIGTERM)
        _, told = launcher.communicate(timeout=60)
        assert launcher.returncode == 143, told
        end = time.monotonic() + 20
        while alive(rank) and time.monotonic() < end:
            time.sleep(0.05)
        assert not alive(rank)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    finished = json.loads((folder / "manifest.json").read_text())["finished"]
    assert len(finished) < 24 and sorted(path.stem for path in folder.glob("arrays/*.npz")) == finished
    one = [*changes[:1], *changes[3:]]
    evaluate(load(one[0], [*one[1:], "out=runs/two"]), prior, say=lambda line: None)
    evaluate(load(one[0], [*one[1:], "out=runs/whole"]), prior, say=lambda line: None)
    assert arrays_of(folder) == arrays_of(work / "runs/whole") and len(arrays_of(folder)) == 24
