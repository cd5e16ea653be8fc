"""Run folders of others, of the past and of bad luck: nothing read is executed, nothing is lost, leaked or silently of two runs."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from analytic import arrays_of
from PIL import Image

from invsolve import ids
from invsolve.cli.main import main
from invsolve.config.load import load
from invsolve.data.items import find_files
from invsolve.data.mri import MRIData
from invsolve.errors import ConfigError
from invsolve.reports import compare, report, score
from invsolve.reports.tables import Table
from invsolve.runs.folder import RunFolder
from invsolve.runs.lightning import evaluate
from invsolve.runs.local import run

MINE = "from operators import Identity\n\ndef make(image_shape, gain: float = 1.0):\n    return Identity(image_shape)\n"
TRAP = "open('sprung', 'w').close()\n"


def quiet(config, prior):
    return evaluate(config, prior, say=lambda line: None)


def few(*more, count=2):
    return load("small.yaml", [f"data.indices=0-{count - 1}", *more])


@pytest.fixture
def trapped(work, prior):
    """A finished run whose operator is a file that has become a trap; the file of a module of that name is one too."""

    def make(operator):
        (work / "mine.py").write_text(MINE)
        text = (work / "small.yaml").read_text()
        (work / "custom.yaml").write_text(text.replace("{name: gaussian_blur, std: 1}", operator))
        quiet(load("custom.yaml", ["data.indices=0-1", "out=foreign"]), prior)
        (work / "mine.py").write_text(TRAP + MINE)
        return work / "foreign"

    return make


CUSTOM = "{name: custom, target: 'mine.py:make', gain: 2.0}"
OPERATORS = {
    "alone": CUSTOM,
    "module": "{name: custom, target: 'mine:make'}",
    "composed": f"{{name: compose, parts: [{{name: gaussian_blur, std: 1}}, {CUSTOM}]}}",
    "stacked": f"{{name: stack, parts: [{{name: compose, parts: [{CUSTOM}]}}, denoising]}}",
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_reading_a_foreign_run_executes_nothing(work, trapped, kind, monkeypatch, capsys):
    """Of score, report, compare and show; with --trust they do, which shows that the trap is one."""
    import sys

    monkeypatch.setattr(sys, "path", [str(work), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    folder = trapped(OPERATORS[kind])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    if kind == "module":
        shutil.rmtree(work / "__pycache__", ignore_errors=True)
    for arguments in (["score", folder], ["report", folder], ["compare", folder, folder], ["show", folder / "config.yaml"]):
        extra = [] if arguments[0] == "show" else ["--lpips", "none"]
        assert main([*map(str, arguments), *extra]) == 0, capsys.readouterr().err
        assert not (work / "sprung").exists(), arguments[0]
    told = capsys.readouterr().out
    assert "was not executed" in told and "mine" in told
    assert "was not executed" in (folder / "report.html").read_text()
    assert main(["show", str(folder / "config.yaml"), "--trust"]) == 0 and (work / "sprung").exists()


def test_what_is_read_without_the_operator_is_what_the_operator_gives(work, prior):
    """An operator without symmetries: the numbers of the records are those of its code, to the six digits that they are kept with."""
    (work / "mine.py").write_text(MINE)
    text = (work / "small.yaml").read_text()
    (work / "custom.yaml").write_text(text.replace("{name: gaussian_blur, std: 1}", CUSTOM))
    quiet(load("custom.yaml", ["data.indices=0-1", "out=own"]), prior)
    plain, trusted = score("own", "none"), score("own", "none", trust=True)
    assert plain.values.keys() == trusted.values.keys() and not any("not executed" in note for note in trusted.notes)
    for key, column in trusted.values.items():
        for id, value in column.items():
            assert plain.values[key][id] == pytest.approx(value, rel=2e-5), key
    (work / "mine.py").write_text(MINE + "# another\n")
    with pytest.raises(ConfigError, match=r"mine.py \(operator.target\) has changed since i00"):
        score("own", "none", trust=True)


def test_the_environment_is_not_looked_up(work, prior, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "hunter2")
    quiet(few("out=foreign"), prior)
    config = work / "foreign/config.yaml"
    text = config.read_text()
    for changed in (
        text.replace("prior:\n  name: any", "prior:\n  name: ${oc.env:SECRET}"),
        text.replace("sampler:\n  name: dps", "sampler:\n  name: ${oc.env:SECRET}"),
        text.replace("sigma: 0.05", "sigma: ${oc.env:SECRET}"),
    ):
        assert changed != text
        config.write_text(changed)
        for arguments in (["score", "foreign"], ["report", "foreign"], ["show", "foreign/config.yaml"]):
            main(arguments)
        told = capsys.readouterr()
        pages = [path.read_text() for path in (work / "foreign").rglob("*.*") if path.suffix in (".html", ".md", ".csv", ".tex")]
        assert not any("hunter2" in text for text in (told.out, told.err, *pages))
    assert "${oc.env:SECRET}" in told.err  # the value as it stands, which is no number


def test_pickles_are_not_loaded(work, prior):
    class Bomb:
        def __reduce__(self):
            return (open, (str(work / "sprung"), "w"))

    quiet(few("out=foreign"), prior)
    path = work / "foreign/arrays/i00.npz"
    np.savez(path, y=np.array([Bomb()], dtype=object), samples=np.zeros((2, 3, 16, 16)), mean=np.zeros((3, 16, 16)))
    record = work / "foreign/records/i00.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"bytes": path.stat().st_size, "sha256": ""}))
    with pytest.raises(ConfigError, match="i00.npz is damaged"):
        score("foreign", "none")
    assert not (work / "sprung").exists()


def test_a_record_that_names_another_place_is_none(work, prior):
    quiet(few("out=foreign"), prior)
    shutil.copy(work / "foreign/arrays/i00.npz", work / "secret.npz")
    held = json.loads((work / "foreign/records/i00.json").read_text())
    for name in ("x", ids.file_name("../secret"), ids.file_name("../../secret")):
        for id in ("../secret", "../../secret"):
            (work / f"foreign/records/{name}.json").write_text(json.dumps(held | {"id": id}))
            assert score("foreign", "none").ids == ["i00", "i01"]
    shutil.copy(work / "secret.npz", work / "foreign/secret.npz")
    assert score("foreign", "none").ids == ["i00", "i01"]
    assert "secret" not in report("foreign", "none").read_text()


@pytest.mark.parametrize("section", ["prior", "operator", "noise", "schedule", "sampler"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_name_that_is_looked_up_stays_what_it_is(work, prior, monkeypatch, capsys, section, whole):
    """Nothing of a stored run is looked up, and of the environment's text nothing once more."""
    quiet(few("out=foreign"), prior)
    config = work / "foreign/config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree[section] = "${oc.env:SECRET}" if whole else {**tree[section], "name": "${oc.env:SECRET}"}
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    monkeypatch.setenv("SECRET", "hunter2")
    for arguments in (["score", "foreign"], ["show", "foreign/config.yaml"]):
        main(arguments)
        told = capsys.readouterr()
        assert "hunter2" not in told.out + told.err
    assert "${oc.env:SECRET}" in told.out + told.err
    monkeypatch.setenv("NAME", "${oc.env:SECRET}")
    with pytest.raises(ConfigError) as refused:
        load("small.yaml", [f"{section}=${{oc.env:NAME}}"]).sections[section].build()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [{"rows": 5}, {"rows": [[1]]}, {"rows": [["0", "psnr", "x"]]}, {"facts": [1]}, {"id": 3}, {"failed": {}, "rows": None}, {"bytes": "x"},
     {"rows": [["0", "residual", 10**400]]}, {"facts": {"seconds": "x"}}, {"facts": {"seconds": None}}, {"facts": {"network_calls": [1]}},
     {"facts": {"peak_memory_mb": {}}}, {"trace": {"steps": "abc"}}, {"trace": {"steps": [0, 1], "residuals": [[1.0]]}},
     {"trace": {"steps": [0], "residuals": [["1"]]}}, {"trace": {"steps": [0], "residuals": [[float("nan")]]}},
     {"trace": {"steps": [-1]}}, {"trace": {"frames": [10**30]}}],
)  # fmt: skip
def test_a_record_that_is_none_is_left_out_and_its_image_sampled_again(work, prior, change):
    quiet(few("out=run"), prior)
    path = work / "run/records/i00.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert score("run", "none").ids == ["i01"]
    assert report("run", "none").is_file()
    assert quiet(few("out=run"), prior).sampled == ["i00"]


@pytest.mark.parametrize("kind", ["digits", "nested", "bytes", "pipe", "device", "loop"])
def test_what_is_no_record_and_no_manifest_stops_nothing(work, prior, kind):
    """Numbers without end, and names that lead to what has no end."""
    quiet(few("out=run"), prior)
    for name in ("records/i00.json", "manifest.json"):
        path = work / "run" / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind in ("device", "loop"):
            path.symlink_to("/dev/zero" if kind == "device" else path.name)
        else:
            path.write_bytes({"digits": b'{"id": ' + b"1" * 6000 + b"}", "nested": b"[" * 100_000, "bytes": b"\xff\x00"}[kind])
    assert score("run", "none").ids == ["i01"] and report("run", "none").is_file()
    assert quiet(few("out=run"), prior).sampled == ["i00"]
    assert json.loads((work / "run/manifest.json").read_text())["finished"] == ["i00", "i01"]


def test_an_output_folder_that_cannot_be_one_is_refused(work, prior):
    (work / "file").write_text("x")
    (work / "link").symlink_to("nowhere")
    for out in ("file", "file/below", "link", "link/below"):
        with pytest.raises(ConfigError, match=f"out = {out}: .* choose another folder"):
            quiet(few(f"out={out}"), prior)
    assert (work / "file").read_text() == "x" and not (work / "nowhere").exists()


def test_folders_in_the_place_of_files_cost_their_image_alone(work, prior):
    for name in ("manifest.json", "metrics.csv", "records/i00.json"):
        quiet(few(f"out={name}.run"), prior)
        path = work / f"{name}.run" / name
        path.unlink()
        path.mkdir()
        (work / f"{name}.run/arrays/i01.npz").unlink()
        if name.startswith("records"):
            result = quiet(few(f"out={name}.run"), prior)
            assert result.sampled == ["i01"] and "a folder stands where" in result.failed["i00"]
        else:
            with pytest.warns(UserWarning, match="a folder stands where"):
                assert quiet(few(f"out={name}.run"), prior).sampled == ["i01"]


@pytest.mark.parametrize(
    "name, change",
    [
        ("samples", lambda a: a.astype(complex)), ("samples", lambda a: a > 0), ("mean", lambda a: a.astype(np.uint64)),
        ("samples", lambda a: a[0, 0, 0, 0]), ("mean", lambda a: a[0, 0, 0]), ("samples", lambda a: a[:0]), ("mean", lambda a: a[:0]),
        ("x", lambda a: a[:, :5]), ("y", lambda a: a[:1]), ("samples", lambda a: a * np.nan), ("mean", lambda a: a + np.inf),
        ("samples", lambda a: a.astype(">f4")), ("mean", lambda a: np.array(["x"])),
    ],
)  # fmt: skip
def test_arrays_that_no_run_wrote_are_damaged_in_one_line(work, prior, name, change, capsys):
    quiet(few("out=foreign"), prior)
    replace_arrays(work / "foreign", lambda held: {**held, name: change(held[name])})
    for command in ("score", "report"):
        assert main([command, "foreign", "--lpips", "none"]) == 2
        told = capsys.readouterr().err
        assert "arrays/i00.npz is damaged" in told and told.count("\n") == 1


def replace_arrays(folder, change):
    """Arrays of i00 that its record tells of."""
    path, record = folder / "arrays/i00.npz", folder / "records/i00.json"
    np.savez(path, **change(dict(np.load(path))))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"bytes": path.stat().st_size, "sha256": ""}))


def test_an_array_that_claims_more_than_the_file_holds(work, prior):
    quiet(few("out=foreign"), prior)
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1000000, 1000000), }"
    with zipfile.ZipFile(work / "foreign/arrays/i00.npz", "w") as held:
        for name in ("y", "samples", "mean", "std"):
            held.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + head.ljust(117) + b"\n")
    record = work / "foreign/records/i00.json"
    size = (work / "foreign/arrays/i00.npz").stat().st_size
    record.write_text(json.dumps(json.loads(record.read_text()) | {"bytes": size, "sha256": ""}))
    with pytest.raises(ConfigError, match="its header claims"):
        score("foreign", "none")


def test_results_of_two_weights_are_not_averaged(work, prior):
    quiet(few("out=foreign"), prior)
    record = work / "foreign/records/i00.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights": "0" * 64}))
    for command in (score, report):
        with pytest.raises(ConfigError, match="different weights"):
            command("foreign", "none")


def test_a_report_shows_no_picture_from_elsewhere_and_takes_any_manifest(work, prior):
    quiet(few("out=foreign"), prior)
    path = work / "foreign/records/i00.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"trace": {**held["trace"], "frames": [0]}}))
    (work / "foreign/manifest.json").write_text(json.dumps({"versions": [1], "expected": "x", "images": 5}))
    (work / "foreign/images/i00").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(work / "mine.gif")
    place = work / "foreign/images/i00/trajectory.gif"
    shutil.copy(work / "mine.gif", place)
    with_frame = report("foreign", "none").read_text()
    place.unlink()
    without = report("foreign", "none").read_text()
    place.symlink_to(work / "mine.gif")
    assert report("foreign", "none").read_text() == without != with_frame


def test_names_of_folders_execute_nothing_in_tex():
    table = Table("a\nb", ["", "x"], [["\\input{/etc/passwd}$a^b~", "1\n2"]], ["c\rd"])
    assert table.latex().splitlines()[:2] == ["% a b", "% c d"]
    assert r"\textbackslash{}input\{/etc/passwd\}\$a\textasciicircum{}b\textasciitilde{} & 1 2 \\" in table.latex().splitlines()
    assert len(table.markdown().splitlines()) == 7


def test_records_of_another_configuration_are_refused_and_old_ones_read(work, prior):
    quiet(few("out=run"), prior)
    table = score("run", "none").values
    record = work / "run/records/i01.json"
    held = json.loads(record.read_text())
    assert set(held) >= {"sha256", "files", "run"}
    # As written before there were checksums of arrays.
    record.write_text(json.dumps({key: value for key, value in held.items() if key not in ("sha256", "files", "run")}))
    assert score("run", "none").values == table and quiet(few("out=run"), prior).skipped == ["i00", "i01"]
    text = (work / "run/config.yaml").read_text()
    (work / "run/config.yaml").write_text(text.replace("sigma: 0.05", "sigma: 0.06"))
    for read in (score, report):
        with pytest.raises(ConfigError, match="i00.json is of another configuration than run/config.yaml"):
            read("run", "none")


def save_mask(path, side):
    mask = np.ones((16, 16), np.uint8)
    mask[:side, :side] = 0
    Image.fromarray(255 * mask).save(path)


def test_every_file_that_decides_a_result_is_remembered(work, prior):
    """A mask, a mask inside a part, a kernel, a folder of masks, one's own code: changed, the run is another one."""
    save_mask("mask.png", 4)
    np.save("kernel.npy", np.full((3, 3), 1 / 9))
    (work / "mine.py").write_text(MINE)
    (work / "masks").mkdir()
    for id in ("i00", "i01", "i02"):
        save_mask(f"masks/{id}.png", 5)
    inpainting = "{name: inpainting, kind: file, mask: mask.png}"
    operators = {
        "mask.png (operator.mask)": inpainting,
        "mask.png (operator.parts.1.mask)": f"{{name: compose, parts: [denoising, {inpainting}]}}",
        "kernel.npy (operator.kernel)": "{name: blur, kernel: kernel.npy}",
        "masks (operator.mask)": "{name: inpainting, kind: file, mask: masks, per_image: true}",
        "mine.py (operator.target)": CUSTOM,
    }
    text = (work / "small.yaml").read_text()
    for place, (what, operator) in enumerate(operators.items()):
        lot = work / f"lot{place}"
        lot.mkdir()
        for name in ("i00.png", "i01.png"):
            shutil.copy(work / "photos" / name, lot)
        (work / "c.yaml").write_text(text.replace("{name: gaussian_blur, std: 1}", operator))
        overrides = [f"data.root=lot{place}", f"out=run{place}"]
        assert quiet(load("c.yaml", overrides), prior).sampled == ["i00", "i01"]
        assert quiet(load("c.yaml", overrides), prior).skipped == ["i00", "i01"]
        name = what.partition(" ")[0]
        file = work / ("masks/i01.png" if name == "masks" else name)
        before = file.read_bytes()
        if name == "kernel.npy":
            np.save(file, np.full((3, 3), 1 / 8))
        elif name == "mine.py":
            file.write_text(MINE + "\n")
        else:
            save_mask(file, 6)
        for more in ((), ("i02.png",)):  # nothing to sample, and something
            for added in more:
                shutil.copy(work / "photos" / added, lot)
            with pytest.raises(ConfigError) as refusal:
                quiet(load("c.yaml", overrides), prior)
            assert what in str(refusal.value) and "has changed since" in str(refusal.value)
        if name != "mine.py":  # which is not executed, and so not looked at
            with pytest.raises(ConfigError, match="has changed since"):
                score(f"run{place}", "none")
        file.write_bytes(before)
        if name == "masks":  # a mask of another image is no file of those that are finished
            save_mask("masks/i02.png", 6)
        assert quiet(load("c.yaml", overrides), prior).sampled == ["i02"]


def test_an_input_that_changes_while_it_is_read_fails_and_is_never_recorded_as_another(work, prior, monkeypatch):
    config = few("out=run")
    load_image = type(config.sections["data"].build()).read

    def read(self, path):
        found = load_image(self, path)
        if path.name == "i00.png":
            Image.new("RGB", (16, 16), (os.getpid() % 200, len(calls), 0)).save(path)
            calls.append(path)
        return found

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(type(config.sections["data"].build()), "read", read)
        result = quiet(config, prior)
    assert result.sampled == ["i01"] and "changed while it was read" in result.failed["i00"]
    import hashlib

    assert quiet(few("out=run"), prior).sampled == ["i00"]
    images = json.loads((work / "run/manifest.json").read_text())["images"]
    assert images["i00"]["input_sha256"] == hashlib.sha256((work / "photos/i00.png").read_bytes()).hexdigest()


def test_strangers_stay_when_a_configuration_is_refused(work, prior):
    """The folder of a job system, before and after; what this process made goes."""
    (work / "exp/logs").mkdir(parents=True)
    (work / "exp/logs/slurm.out").write_text("job 7")
    for more in (["data.size=12"], ["sampler=daps", "sampler.inner=exact", "operator=hdr"]):
        with pytest.raises(ConfigError):
            quiet(few("out=exp", "trainer.logger=csv", *more), prior)
        assert [path.relative_to(work / "exp").as_posix() for path in sorted((work / "exp").rglob("*"))] == ["logs", "logs/slurm.out"]
    for entry in (work / "photos").glob("i0[01].png"):
        entry.write_bytes(b"no image")
    assert sorted(quiet(few("out=exp", "trainer.logger=csv"), prior).failed) == ["i00", "i01"]
    assert (work / "exp/logs/slurm.out").read_text() == "job 7"


def test_withdrawing_takes_what_this_process_made_and_nothing_else(work, prior):
    folder = RunFolder(few("out=a/run"))
    folder.begin()
    folder.fail("i00", "reason")
    (work / "a/run/notes.txt").write_text("mine")
    (work / "a/run/images/i00").mkdir(parents=True)
    (work / "a/run/images/i00/kept.png").write_bytes(b"x")
    folder.gather()
    folder.withdraw()
    assert sorted(path.relative_to(work / "a/run").as_posix() for path in (work / "a/run").rglob("*") if path.is_file()) == [
        "images/i00/kept.png",
        "notes.txt",
    ]
    folder = RunFolder(few("out=b/run"))
    folder.begin()
    folder.withdraw()
    assert (work / "b").is_dir() and not (work / "b/run").exists()


def test_failures_of_all_shards_are_gathered_and_none_takes_anothers(work, prior):
    """Shard 0 fails altogether, shard 1 is sampled: whichever comes first, the manifest has both."""
    (work / "photos/i00.png").write_bytes(b"no image")
    for order in ((0, 1), (1, 0)):
        out = f"out=run{order[0]}"
        for shard in order:
            quiet(few(out, f"data.shard={shard}/2"), prior)
        manifest = json.loads((work / f"run{order[0]}/manifest.json").read_text())
        assert list(manifest["failed"]) == ["i00"] and manifest["finished"] == ["i01"]
    # Without shards too: a folder in which another process has recorded something is not taken away.
    first, second = RunFolder(few("out=both")), RunFolder(few("out=both"))
    first.begin(), second.begin()
    second.fail("i01", "of the second")
    first.fail("i00", "of the first")
    first.withdraw()
    assert RunFolder(few("out=both")).failures() == {"i00": "of the first", "i01": "of the second"}


@pytest.mark.parametrize("name", ["x .png", f"{'y' * 210}.png", "CON.png"])
def test_a_file_whose_name_gives_no_id_is_a_failure_and_nothing_is_written_elsewhere(work, prior, name):
    shutil.move(work / "photos/i01.png", work / "photos" / name)
    (work / "lot").mkdir()
    for file in ("i00.png", name):
        shutil.copy(work / "photos" / file, work / "lot" / file)
    before = set(work.rglob("*"))
    result = quiet(load("small.yaml", ["data.root=lot", "out=deep/run", "trainer.panels=-1"]), prior)
    id = Path(name).stem
    assert result.sampled == ["i00"] and "rename it" in result.failed[id]
    new = set(work.rglob("*")) - before - {work / "deep"}
    assert all(path.is_relative_to(work / "deep/run") for path in new)
    assert {path.name for path in (work / "deep/run/images").iterdir()} == {"i00"}
    manifest = json.loads((work / "deep/run/manifest.json").read_text())
    assert id in manifest["failed"] and quiet(load("small.yaml", ["data.root=lot", "out=deep/run"]), prior).skipped == ["i00"]


def test_ids_with_dots_and_part_are_in_every_table(work, prior):
    (work / "lot").mkdir()
    names = ["a.part", "b", "b.c.part"]
    for name in names:
        shutil.copy(work / "photos/i00.png", work / "lot" / f"{name}.png")
    result = quiet(load("small.yaml", ["data.root=lot", "out=run"]), prior)
    assert sorted(result.sampled) == sorted(names) == sorted({row.id for row in result.rows})
    assert score("run", "none").ids == sorted(names)
    page = report("run", "none").read_text()
    assert all(name in page for name in names)
    assert sorted(quiet(load("small.yaml", ["data.root=lot", "out=run"]), prior).skipped) == sorted(names)


def test_measurements_whose_stored_ids_lead_elsewhere(work, prior):
    (work / "y").mkdir()
    for k, id in enumerate(["fine", "../up", "/etc/x", "C:evil"]):
        np.savez(work / f"y/m{k}.npz", y=np.zeros((3, 16, 16), np.float32), id=id)
    result = quiet(load("small.yaml", ["data.measurement=y", "out=run"]), prior)
    assert result.sampled == ["fine"] and sorted(result.failed) == ["../up", "/etc/x", "C:evil"]
    assert not (work / "up.npz").exists() and len(list((work / "run/records").iterdir())) == 4
    with pytest.raises(ConfigError, match="data.id = '../up'"):
        quiet(load("small.yaml", ["data.measurement=y/m1.npz", "out=other"]), prior)


def test_volumes_of_one_name_are_refused_with_both_paths(work):
    for patient in "abc":
        (work / patient).mkdir()
        np.save(work / patient / "kspace.npy", np.ones((2, 8, 8), np.complex64))
    with pytest.raises(ConfigError, match=r"'kspace_000' would stand for a/kspace.npy, b/kspace.npy"):
        MRIData("*/kspace.npy", "max").items()
    shutil.move("a/kspace.npy", "a/vol.npy")
    np.save("a/vol_001.npy", np.ones((8, 8), np.complex64))
    with pytest.raises(ConfigError, match="'vol_001' would stand for"):
        MRIData("a", "max").items()
    with pytest.raises(ConfigError, match="would stand for"):
        load("small.yaml", ["data=crops", "data.root=*/*.png"]).items() if save_twins(work) else None


def save_twins(work):
    for folder in "ab":
        Image.new("RGB", (80, 80)).save(work / folder / "twin.png")
    return True


def test_a_glob_does_not_find_what_runs_wrote(work, prior):
    """** over a folder that holds finished runs, also of others; panels that are named are found."""
    quiet(few("out=photos/old", "trainer.panels=-1"), prior)
    config = load("small.yaml", ["data.root=photos/**/*.png", "out=photos/new", "trainer.panels=-1"])
    ids = [item.id for item in config.items()]
    assert ids == [f"i{k:02d}" for k in range(24)]
    shutil.rmtree(work / "photos/old")
    config = load("small.yaml", ["data.root=photos/**/i0[01].png", "out=photos/new", "trainer.panels=-1"])
    assert quiet(config, prior).sampled == ["i00", "i01"]
    again = load("small.yaml", ["data.root=photos/**/i0[01].png", "out=photos/new", "trainer.panels=-1"])
    assert quiet(again, prior).skipped == ["i00", "i01"]
    assert [path.name for path in find_files("photos/new/images/**/sample_0.png")] == ["sample_0.png"] * 2
    assert find_files("photos/new/images/i00") and find_files("photos/new/images/i00/panel.png")


def test_a_changed_byte_is_found_and_sampled_again(work, prior):
    """At the right size: in the data, and in what no reader looks at."""
    quiet(few("out=run"), prior)
    whole = arrays_of(work / "run")
    for place in (100, -1):
        path = work / "run/arrays/i01.npz"
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"i01.npz is damaged \("):
            score("run", "none")
        assert quiet(few("out=run"), prior).sampled == ["i01"] and arrays_of(work / "run") == whole


def test_arrays_cut_short_are_named_below_the_table(work, prior):
    quiet(few("out=run"), prior)
    path = work / "run/arrays/i01.npz"
    path.write_bytes(path.read_bytes()[:100])
    found = score("run", "none")
    assert found.ids == ["i00"] and any("cut short: i01" in note for note in found.notes)


def test_results_are_on_the_disk_before_they_have_a_name(work, prior, monkeypatch):
    """fsync of arrays and record, each before its rename, and of their folders after it."""
    seen, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(("name", Path(b).name)), replace(a, b))[1])
    monkeypatch.setattr(os, "fsync", lambda n: (seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{n}")).name)), fsync(n))[1])
    quiet(few("out=run", count=1), prior)
    names = [("name", "i00.npz"), ("sync", "arrays"), ("name", "i00.json"), ("sync", "records")]
    places = [seen.index(one) for one in names]
    assert places == sorted(places)
    for place in (places[0], places[2]):
        assert seen[place - 1][0] == "sync" and ids.temporary(seen[place - 1][1])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0" * 50, b"\xff\xfe", b'{"images": 3}'])
def test_a_damaged_manifest_or_table_is_made_again(work, prior, content):
    quiet(few("out=run"), prior)
    before = {name: (work / "run" / name).read_bytes() for name in ("manifest.json", "metrics.csv")}
    for name in before:
        (work / "run" / name).write_bytes(content)
    report("run", "none")
    assert quiet(few("out=run"), prior).skipped == ["i00", "i01"]
    after = {name: (work / "run" / name).read_bytes() for name in before}
    wanted = json.loads(before["manifest.json"])
    assert {key: value for key, value in json.loads(after["manifest.json"]).items() if key in wanted} == wanted
    assert after["metrics.csv"] == before["metrics.csv"]


def test_a_damaged_checkpoint_is_discarded_with_a_note(work, prior, capsys):
    """Cut, empty, another zip, another pickle: each costs the time it would have saved, and no more."""
    config = few("out=run", "checkpoint_every=2")
    wanted = few("out=wanted")
    quiet(wanted, prior)
    from invsolve.runs.task import Reconstruction

    path = Reconstruction(config, prior, partial=work / "run/partial").checkpoint(["i00", "i01"])

    def torn(kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a", "b")
        elif kind in ("tensor", "other"):
            torch.save(torch.zeros(3) if kind == "tensor" else {"identity": {}, "chunk": 1, "finished": {}, "running": None}, path)
        else:
            path.write_bytes({"empty": b"", "cut": b"PK\x03\x04", "text": b"hello"}[kind])

    for kind in ("zip", "tensor", "other", "empty", "cut", "text"):
        shutil.rmtree(work / "run", ignore_errors=True)
        RunFolder(config).begin()
        torn(kind)
        assert quiet(config, prior).sampled == ["i00", "i01"]
        assert "discarded" in capsys.readouterr().err
        assert arrays_of(work / "run") == arrays_of(work / "wanted")


def test_a_cut_configuration_says_so_and_comes_back(work, prior, capsys):
    quiet(few("out=run"), prior)
    path = work / "run/config.yaml"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for cut in ("", text[: len(text) // 2], text[:-1], "".join(lines[: len(lines) // 2]), "".join(lines[:3]), "\0" * 40):
        path.write_text(cut)
        with pytest.raises(ConfigError, match="config.yaml is cut short or damaged; delete it"):
            quiet(few("out=run"), prior)
    for read in (score, report):
        with pytest.raises(ConfigError, match="config.yaml is cut short"):
            read("run", "none")
    path.unlink()
    assert quiet(few("out=run"), prior).skipped == ["i00", "i01"] and path.read_text() == text
    path.unlink()
    with pytest.raises(ConfigError, match="of another configuration"):
        quiet(few("out=run", "seed=9"), prior)


@pytest.mark.parametrize("engine", ["run", "eval"])
def test_a_folder_that_is_removed_meanwhile_is_no_success(work, prior, engine, monkeypatch):
    store = RunFolder.finish

    def finish(self, id, *arguments):
        if id == "i02":
            shutil.rmtree(self.path)
        return store(self, id, *arguments)

    config = few("out=run", "batch=1", count=4)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", finish)
        result = run(config, prior, say=lambda line: None) if engine == "run" else quiet(config, prior)
    assert sorted(result.failed) == ["i00", "i01"] and sorted(result.sampled) == ["i02", "i03"]
    assert all("removed" in reason for reason in result.failed.values())
    assert sorted(arrays_of(work / "run")) == ["i02", "i03"]
    assert sorted(quiet(config, prior).sampled) == ["i00", "i01"]


def test_two_ids_that_a_file_system_takes_for_one(work, prior, monkeypatch):
    """As where names do not differ by capitals: the second is a failure, and the first stays."""
    (work / "lot").mkdir()
    for k, name in enumerate(("A", "a")):
        shutil.copy(work / f"photos/i0{k}.png", work / f"lot/{name}.png")
    exists = Path.exists
    monkeypatch.setattr(RunFolder, "record_file", lambda self, id: self.path / "records" / f"{id}.json")
    monkeypatch.setattr(
        Path, "exists", lambda self, **more: exists(self, **more) or (self.parent.name == "records" and exists(self.with_name("A.json")))
    )
    result = quiet(load("small.yaml", ["data.root=lot", "out=run", "batch=1"]), prior)
    assert result.sampled == ["A"] and "does not tell 'a'" in result.failed["a"]
    assert sorted(arrays_of(work / "run")) == ["A"]


def test_a_comparison_overwrites_nothing_unasked(work, prior, capsys):
    quiet(few("out=run"), prior)
    for name in ("README.md", "README.tex", "README.csv"):
        (work / name).write_text("mine")
        assert main(["compare", "run", "run", "--lpips", "none", "--out", "README"]) == 2
        assert f"{name}: exists" in capsys.readouterr().err and (work / name).read_text() == "mine"
        if name != "README.csv":
            (work / name).unlink()
    assert not (work / "README.md").exists()
    assert main(["compare", "run", "run", "--lpips", "none", "--out", "README", "--overwrite"]) == 0
    assert (work / "README.csv").read_text() != "mine"
    with pytest.raises(ConfigError, match="exists"):
        compare(["run", "run"], lpips="none").write("README")


def test_a_file_that_is_named_by_dots_alone_is_hidden_and_refused_by_name(work, prior):
    """`...png` would have the id `..`, which leads out of the folder."""
    (work / "lot").mkdir()
    shutil.copy(work / "photos/i00.png", work / "lot/...png")
    shutil.copy(work / "photos/i00.png", work / "lot/i00.png")
    result = quiet(load("small.yaml", ["data.root=lot", "out=deep/run"]), prior)
    assert result.sampled == ["i00"] and not result.failed
    before = set(work.rglob("*"))
    with pytest.raises(ConfigError, match=r"'\.\.' is the name of no file"):
        run(load("small.yaml", ["data.root=lot/...png", "out=deep/other"]), prior, say=lambda line: None)
    assert set(work.rglob("*")) == before


def test_a_folder_of_the_first_version_is_scored(work, prior):
    """Its identity left out what decides the rows of a pass, its memory_gb was null, and its records knew no checksums."""
    quiet(few("out=first"), prior)
    config = work / "first/config.yaml"
    config.write_text(config.read_text().replace("memory_gb: 4.0", "memory_gb: null"))
    tree = yaml.safe_load(config.read_text())
    flat = {f"{key}.{sub}": value for key in tree if isinstance(tree[key], dict) for sub, value in tree[key].items()}
    flat |= {key: value for key, value in tree.items() if not isinstance(value, dict)}
    former = ("device", "out", "batch", "memory_gb", "checkpoint_every", "progress", "prior.checkpointing", "data.shard")
    kept = {key: value for key, value in flat.items() if key not in former and not key.startswith("trainer.")}
    identity = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
    for path in (work / "first/records").glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(
            json.dumps({key: record[key] for key in ("id", "weights", "rows", "facts", "trace", "bytes")} | {"config": identity})
        )
    assert score("first", "none").ids
    path.write_text(json.dumps(record | {"config": "0" * 64}))
    with pytest.raises(ConfigError, match="of another configuration"):
        score("first", "none")
