"""Tables of the README and of cards: each has a script that prints it as it stands, and none is written before it is complete."""

import json
import re
import sys
from dataclasses import replace

import pytest
import yaml

from invsolve.resources import resource

sys.path.insert(0, str(resource("scripts")))
rt = pytest.importorskip("reproduce_tables", reason="the scripts are not part of an installed package")
README = resource("README.md").read_text(encoding="utf-8")
# Tables that describe and do not measure, by their first two cells.
PROSE = {("noun", "what it is"), ("config name", "class"), ("sampler", "what it does at a step")}
# The keys of cards that hold measurements.
SCORES = ("held_out_psnr_db", "reconstruction_psnr_db")
TEXT = "before\n\n<!-- table: one -->\n| a |\n| --- |\n| 1 |\n<!-- end -->\n\nbetween\n<!-- table: two -->\n<!-- end -->\nafter, no newline"


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def body_of(name):
    """Head and rows of a table of the README, as cells."""
    head, _, *rows = (cells_of(line) for line in rt.marked(README)[name].splitlines())
    return head, rows


def numbers(text):
    return [float(found) for found in re.findall(r"-?\d+\.?\d*", text)]


def test_every_table_of_the_readme_has_a_script_or_is_prose():
    assert {name for name, table in rt.TABLES.items() if not table.key} == set(rt.marked(README))
    outside = rt.MARKED.sub("", README).splitlines()
    first = {tuple(cells_of(above)[:2]) for above, line in zip(outside, outside[1:], strict=False) if re.match(r"\|( *-+ *\|)+$", line)}
    assert first == PROSE


def test_every_table_of_a_card_has_a_script():
    cards = {path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in resource("data", "priors").glob("*/card.yaml")}
    keys = {(f"card_{name}", f"data/priors/{name}/card.yaml", key) for name, card in cards.items() for key in card if key in SCORES}
    assert len(cards) >= 3 and keys == {(name, table.place, table.key) for name, table in rt.TABLES.items() if table.key}


def test_no_table_of_the_readme_is_empty():
    assert not {name for name, body in rt.marked(README).items() if len(body.splitlines()) < 3}


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table: one -->\n| a |\n",
        "| a |\n<!-- end -->\n",
        "<!-- table: one -->\n<!-- table: two -->\n<!-- end -->\n<!-- end -->\n",
        "<!-- table: one -->\n<!-- end -->\n<!-- table: one -->\n<!-- end -->\n",
        "<!-- table: a name -->\n<!-- end -->\n",
    ],
)
def test_markers_that_do_not_pair_up_are_refused(text):
    with pytest.raises(ValueError, match=r"do not pair up|stands twice"):
        rt.marked(text)


def test_a_table_takes_its_place_and_nothing_else_changes():
    table = rt.TABLES["mri"]
    assert rt.marked(TEXT) == {"one": "| a |\n| --- |\n| 1 |\n", "two": ""}
    after = rt.replaced(TEXT, "one", table, "| \\1 |\n| --- |")
    assert after == TEXT.replace("| a |\n| --- |\n| 1 |", "| \\1 |\n| --- |")
    assert rt.replaced(after, "one", table, rt.stored(TEXT, "one", table)) == TEXT
    assert rt.replaced(TEXT, "two", table, "| b |") == TEXT.replace("two -->\n", "two -->\n| b |\n")
    with pytest.raises(ValueError, match="no <!-- table: three -->"):
        rt.replaced(TEXT, "three", table, "")


@pytest.mark.parametrize("prior", ["photo", "phantom"])
def test_a_card_is_written_as_it_stands_and_nothing_else_changes(prior):
    name, text = f"card_{prior}", resource("data", "priors", prior, "card.yaml").read_text(encoding="utf-8")
    rows = [{"of": prior, **row} for row in yaml.safe_load(text)["held_out_psnr_db"]]
    table = rt.TABLES[name]
    assert table.text(rows) == rt.stored(text, name, table)
    rows[0]["noisy"] = 1.25
    after = rt.replaced(text, name, table, table.text(rows))
    changed = [(a, b) for a, b in zip(text.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 1 and changed[0][1] == "  noisy: 1.25"
    with pytest.raises(rt.Incomplete, match=r"sigma 1\.0"):
        table.text(rows[:-1])


def glyph_rows():
    card = yaml.safe_load(resource("data", "priors", "glyphs", "card.yaml").read_text(encoding="utf-8"))
    return [{"of": rt.GLYPHS, "set": name, "psnr": value} for name, value in card["reconstruction_psnr_db"].items()]


def test_the_card_of_the_autoencoder_is_written_as_it_stands_and_nothing_else_changes():
    text, table = resource("data", "priors", "glyphs", "card.yaml").read_text(encoding="utf-8"), rt.TABLES["card_glyphs"]
    rows = glyph_rows()
    assert table.text(rows[::-1]) == rt.stored(text, "card_glyphs", table)
    assert rt.replaced(text, "card_glyphs", table, table.text([rows[0] | {"psnr": 1.25}, *rows[1:]])) == text.replace(
        f"unseen_renderings: {rows[0]['psnr']}", "unseen_renderings: 1.25"
    )
    for other in ([*rows[1:]], [rows[0] | {"of": "elsewhere"}, *rows[1:]]):
        with pytest.raises(rt.Incomplete, match="set unseen_renderings"):
            table.text(other)


def test_the_scores_of_the_autoencoder_are_kept_and_go_into_its_card(tmp_path, monkeypatch):
    script, vae = pytest.importorskip("score_glyphs"), resource("data", "priors", "glyphs", "vae")
    monkeypatch.setattr(script, "SETS", {name: lambda: script.glyphs(20000, range(2))[0] for name in script.SETS})
    (tmp_path / "unet").mkdir()
    (tmp_path / "vae").symlink_to(vae)
    (tmp_path / "card.yaml").write_text("summary: s\nreconstruction_psnr_db: old\nsamples: of before\n", encoding="utf-8")
    command = ["score_glyphs.py", str(tmp_path), "--card", "--no-draws", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["set"] for row in rows] == list(script.SETS) and {row["images"] for row in rows} == {2}
    assert 25 < rows[0]["psnr"] < 45 and len({row["psnr"] for row in rows}) == 1
    card = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert card == {"summary": "s", "reconstruction_psnr_db": {row["set"]: row["psnr"] for row in rows}, "samples": "of before"}
    (tmp_path / "vae").unlink()  # nothing is measured again: without the autoencoder it could not be
    before = (tmp_path / "card.yaml").read_bytes()
    script.main()
    assert (tmp_path / "card.yaml").read_bytes() == before and json.loads((tmp_path / "rows.json").read_text()) == rows


def test_the_table_of_the_prior_is_that_of_its_card():
    card = yaml.safe_load(resource("data", "priors", "photo", "card.yaml").read_text(encoding="utf-8"))
    rows = [{"of": "photo", **row} for row in card["held_out_psnr_db"]]
    assert rt.TABLES["denoising"].text(rows) == rt.stored(README, "denoising", rt.TABLES["denoising"])


def dps_rows():
    import photo_table as script

    lines = iter(body_of("dps")[1])
    for size, each in script.README_CROPS.items():
        for task in script.README_TASKS:
            *_, one, mean, residual, tv = (numbers(cell)[-1] for cell in next(lines))
            yield script.key_of(task, size, each) | {"dps_sample": one, "dps_mean": mean, "dps_residual": residual, "tv": tv}


def mri_rows():
    import mri_table as script

    names = ("zero_filled", "sense", "tv", "sample", "mean", "residual")
    values = (numbers(cell)[0] for cell in body_of("mri")[1][0])
    yield script.key_of(script.options().parse_args([]), next(iter(script.TASKS))) | dict(zip(names, values, strict=True))


def speed_rows():
    import speed_table as script

    for task, (_, goal, fastest, value, ratio) in zip(script.ZETA_1000, body_of("speed")[1], strict=True):
        row = script.key_of(task, script.README_CROPS) | {"dps_1000": float(goal), "rungs": {}}
        none = re.match(r"none tried \((.*): (.*)\)", fastest)
        if none:
            yield row | {"rungs": {"another": [0.0, 1.0], none[1]: [float(none[2]), 1.0]}}
        else:
            yield row | {"rungs": {fastest: [float(value), 1.0]}, "fastest": fastest, "psnr": float(value), "ratio": numbers(ratio)[1]}


def closed_form_rows():
    import closed_form_table as script

    for label, forward, backward, second, variances, weight, mode_mean, mode_spread, mean, spread in body_of("closed_form")[1][2:]:
        value, error = [*numbers(second), 0.0][:2]
        each = [[*numbers(part), 0.0][:2] for part in variances.split(", ")]
        yield {
            "label": label, "draws": script.DRAWS, "calls": [int(forward), int(backward)], "second": value, "second_error": error,
            "variances": [v for v, _ in each], "variance_errors": [e for _, e in each], "weight": float(weight), "weight_error": 0.0,
            "mode_mean": float(mode_mean), "mode_spread": numbers(mode_spread), "mean": float(mean), "spread": numbers(spread),
        }  # fmt: skip


@pytest.mark.parametrize("name, rows", [("dps", dps_rows), ("mri", mri_rows), ("speed", speed_rows), ("closed_form", closed_form_rows)])
def test_a_script_prints_the_table_as_it_stands_and_refuses_less(name, rows):
    table, held = rt.TABLES[name], json.loads(json.dumps(list(rows())))
    assert table.text(held) == rt.stored(README, name, table)
    with pytest.raises(rt.Incomplete, match="no row with"):
        table.text(held[:-1])


def measured(plan, **values):
    made = {"psnr_sample": 26.715, "psnr_mean": 28.62, "ssim_sample": 0.817, "ssim_mean": 0.884, "residual": 0.921, "method": "TV 0.12"}
    return plan.key() | made | {"forward": 50.0, "backward": 0.0, "decode": 2.0, "seconds": 1.28} | values


def test_the_table_of_samplers_shows_the_planned_cells():
    import sampler_table as script

    plans = script.readme_plan()
    assert len({(p.task, p.size, p.sampler) for p in plans}) == len(plans)
    rows = [measured(plan) for plan in plans]
    head, _, *lines = (cells_of(line) for line in rt.TABLES["samplers"].text(rows).splitlines())
    assert head == body_of("samplers")[0] and len(lines) == len({(p.task, p.size) for p in plans})
    assert lines[0][:2] == ["box of 24 x 24 missing", "TV 28.62, 0.88"]
    assert lines[0][4] == "26.71, 28.62 (8), 0.88; 0.92" or lines[0][4] == "26.72, 28.62 (8), 0.88; 0.92"
    # More samples than planned go first, another size or fewer samples do not count, and a failure is no empty cell.
    of_daps = next(plan for plan in plans if plan.sampler == "daps")
    found = script.readme([*rows, measured(replace(of_daps, samples=16), psnr_mean=29.0)])
    assert cells_of(found.splitlines()[2])[4].endswith("29.00 (16), 0.88; 0.92")
    others = [row for row in rows if row["sampler"] != "daps" or row["task"] != of_daps.task or row["size"] != 64]
    for less in (replace(of_daps, samples=4), replace(of_daps, size=128), replace(of_daps, per_photo=1)):
        with pytest.raises(rt.Incomplete, match=rf"1 of {len(plans)} cells .*: daps on photo_inpaint \(64\)"):
            script.readme([*others, measured(less)])
    failed = script.readme([*others, of_daps.key() | {"failed": "Divergence"}])
    assert cells_of(failed.splitlines()[2])[4] == "fails" and failed.count("fails") == 1
    planned = {(p.task, p.size): {q.sampler for q in plans if (q.task, q.size) == (p.task, p.size)} for p in plans}
    for names, line in zip(planned.values(), lines, strict=True):
        assert [cell == "" for cell in line[2:]] == [sampler not in names for sampler in script.SAMPLERS]


def test_the_table_of_latent_samplers_shows_what_a_sample_costs():
    import sampler_table as script

    rows = [measured(plan, seconds=float(k % 7)) for k, plan in enumerate(script.latent_plan())]
    head, _, *lines = (cells_of(line) for line in rt.TABLES["latent"].text(rows).splitlines())
    assert head[3:] == ["ReSample", "P2L", "PSLD", "latent DPS", "LatentDAPS"] and len(lines) == 8 + 4
    assert lines[-2] == ["decodings", "", "", *["2"] * 5] and lines[-1][0] == "seconds" and lines[-1][3] == "0.0 to 6.0"
    assert [line[-1] == "" for line in lines[:8]] == [True] * 4 + [False] * 4 and lines[4][-1].endswith(" (4 images)")
    with pytest.raises(rt.Incomplete, match=r"1 of 44 cells .*: latent_daps on glyph_random \(64\) at 0\.05"):
        script.readme_latent(rows[:-1])


def test_what_is_held_is_not_measured_again(tmp_path, capsys):
    from tables_common import Kept

    path = tmp_path / "made" / "rows.json"
    first = Kept(path).row({"task": "a", "n": 4}, lambda: {"psnr": 25.123456, "list": [1, 2]})
    assert json.loads(path.read_text()) == [first] and "25.123" in capsys.readouterr().out
    again = Kept(path)
    assert again.row({"task": "a"}, lambda: pytest.fail("measured again")) == first
    again.row({"task": "a", "n": 8}, lambda: {"psnr": 26.0})
    assert len(Kept(path).rows) == 2 and sorted(file.name for file in path.parent.iterdir()) == ["rows.json"]


class Scripts:
    """Stands for the processes that measure: writes these results, or ends with an exit code."""

    def __init__(self, monkeypatch, results, code=0):
        self.results, self.code, self.calls = results, code, []
        monkeypatch.setattr(rt.subprocess, "run", self)

    def __call__(self, command, cwd, check):
        self.calls.append(command[1:])
        if self.results is not None:
            rt.Path(command[command.index("--json") + 1]).write_text(json.dumps(self.results))
        return type("Done", (), {"returncode": self.code})


@pytest.fixture
def root(tmp_path):
    text = "x\n\n<!-- table: mri -->\nold\n<!-- end -->\n<!-- table: speed -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_complete_result_is_written_and_not_measured_twice(root, monkeypatch, capsys):
    before, rows = (root / "README.md").read_text(), list(mri_rows())
    scripts = Scripts(monkeypatch, rows)
    assert rt.reproduce(["mri"], root / "work", root) == [] and len(scripts.calls) == 1
    assert scripts.calls[0] == ["scripts/mri_table.py", "--json", str(root / "work" / "mri.json")]
    after = (root / "README.md").read_text()
    assert after == before.replace("old", rt.TABLES["mri"].text(rows))
    assert rt.reproduce(["mri"], root / "work", root) == [] and len(scripts.calls) == 1
    assert "held this already" in capsys.readouterr().out
    assert rt.check(["mri"], root / "work", root) == [] and rt.check(["speed"], root / "work", root) == ["speed"]
    (root / "work" / "speed.json").write_text("[{")  # cut off: of no use, and the others are still compared
    assert rt.check(["speed", "mri"], root / "work", root) == ["speed"]
    assert re.search(r"speed: cannot be compared: .*\nmri: the same", capsys.readouterr().out)
    (root / "README.md").write_text(before)
    assert rt.check(["mri"], root / "work", root) == ["mri"] and "  - old\n  + | zero-filled" in capsys.readouterr().out
    assert (root / "README.md").read_text() == before


@pytest.mark.parametrize("results, code, why", [([], 0, "no row with"), (None, 0, "does not exist"), (None, 1, "exit code 1")])
def test_an_incomplete_result_leaves_the_file_alone_and_the_others_go_on(root, monkeypatch, capsys, results, code, why):
    before = (root / "README.md").read_bytes()
    scripts = Scripts(monkeypatch, results, code)
    assert rt.reproduce(["mri", "speed"], root / "work", root) == ["mri", "speed"] and len(scripts.calls) == 2
    assert (root / "README.md").read_bytes() == before
    out = capsys.readouterr().out
    assert why in out and out.count("not written") == 2


def test_the_list_names_every_table_its_command_and_its_time(capsys):
    assert rt.main(["--list", "--work", "here"]) == 0
    out = capsys.readouterr().out
    for name, table in rt.TABLES.items():
        assert f"{name}: {table.place}" in out and re.search(r"\d+ min|with ", table.time)
        assert all((resource("scripts") / f"{step.script}.py").is_file() for step in table.steps)
    assert "python scripts/mri_table.py --json here/mri.json" in out
