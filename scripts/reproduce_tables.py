"""Regenerates the tables of README.md and of the cards of the shipped priors, each by the script that measured it.

    python scripts/reproduce_tables.py --list                     # what there is, and how long it takes
    python scripts/reproduce_tables.py --only closed_form mri     # without --only, all
    python scripts/reproduce_tables.py --check                    # compare what is written with the results in --work

Results are kept in --work as JSON files, so that what was stopped continues and what is there is not measured again; another
folder, or none, measures from scratch. A table takes its place when it is complete, and nothing else in the file changes:
in README.md what stands between <!-- table: NAME --> and <!-- end -->, in a card the one key. Figures in the prose stay as they are.
Exit code 1 says that a table could not be measured, or with --check that one differs or has no complete results.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tables_common import Incomplete

from invsolve.atomic import replacing

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
GLYPHS = "data/priors/glyphs"
MARKED = re.compile(r"(^<!-- table: (\w+) -->\n)(.*?)(^<!-- end -->$)", re.DOTALL | re.MULTILINE)
MARKER = re.compile(r"^<!-- (?:table:.*|end) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A script and its arguments; `results` is the JSON file in the work folder that it continues."""

    script: str
    arguments: tuple[str, ...]
    results: str

    def command(self, work: Path) -> list[str]:
        """What to run from the root of the repository."""
        return [f"scripts/{self.script}.py", *self.arguments, "--json", str(work / self.results)]


@dataclass(frozen=True)
class Table:
    """A table: how its results are measured, and `text`, which makes it from them (raising Incomplete).

    `place` is the file, and in a card the `key`. `time` is what measuring takes on two CPU cores, and how that is known.
    """

    steps: tuple[Step, ...]
    text: Callable[[Any], str]
    time: str
    place: str = "README.md"
    key: str = ""

    def made(self, work: Path) -> str:
        """The table from the results in the work folder, without a newline at the end. Raises Incomplete."""
        path = work / self.steps[0].results
        if not path.is_file():
            raise Incomplete(f"{path} does not exist")
        return self.text(json.loads(path.read_text(encoding="utf-8")))


def by(script: str, function: str = "readme") -> Callable[[Any], str]:
    """A function of a script, which is not imported before it is called."""
    return lambda rows: str(getattr(importlib.import_module(script), function)(rows))


def card(prior: str, script: str = "score_prior", key: str = "held_out_psnr_db") -> Callable[[Any], str]:
    """The scores of a prior as they stand in its card."""

    def text(rows: Any) -> str:
        scores = importlib.import_module(script).card_rows(rows, prior)
        return yaml.safe_dump({key: scores}, sort_keys=False).rstrip("\n")

    return text


def scored(prior: str) -> tuple[Step]:
    return (Step("score_prior", (prior, "--no-draws"), f"score_prior_{prior}.json"),)


PHOTO_STEPS = (
    Step("photo_table", ("--sizes", "64", "--per-photo", "4"), "photo.json"),
    Step("photo_table", ("--sizes", "128", "--per-photo", "1"), "photo.json"),
)
TABLES = {
    "calibration": Table(
        (Step("calibration_table", (), "calibration.json"),), by("calibration_table"), "about 8 min of one core (measured)"
    ),
    "closed_form": Table(
        (Step("closed_form_table", (), "closed_form.json"),), by("closed_form_table"), "about 10 min of one core (estimated)"
    ),
    "latent": Table(
        (Step("sampler_table", ("--latent", "--readme", "--precision", "bf16"), "latent.json"),),
        by("sampler_table", "readme_latent"),
        "about 160 min of one core (from the seconds in its rows)",
    ),
    "prompts": Table(
        (Step("prompt_recovery", ("--steps", "50", "--precision", "bf16"), "prompts.json"),),
        by("prompt_recovery"),
        "about 20 min of one core (from the seconds in its rows)",
    ),
    "denoising": Table(scored("photo"), by("score_prior"), "about 5 min (estimated)"),
    "mri": Table((Step("mri_table", (), "mri.json"),), by("mri_table"), "about 15 min (estimated)"),
    "samplers": Table(
        (Step("sampler_table", ("--readme",), "samplers.json"),),
        by("sampler_table"),
        "about 180 min of one core (from the seconds in its rows)",
    ),
    "dps": Table(PHOTO_STEPS, by("photo_table"), "about 60 min (estimated)"),
    "speed": Table(
        (Step("speed_table", (), "speed.json"),), by("speed_table"), "about 10 min on a machine that does nothing else (estimated)"
    ),
    "card_photo": Table(scored("photo"), card("photo"), "with denoising", "data/priors/photo/card.yaml", "held_out_psnr_db"),
    "card_phantom": Table(
        scored("phantom"), card("phantom"), "about 10 min (estimated)", "data/priors/phantom/card.yaml", "held_out_psnr_db"
    ),
    "card_glyphs": Table(
        (Step("score_glyphs", (GLYPHS, "--no-draws"), "score_glyphs.json"),),
        card(GLYPHS, "score_glyphs", "reconstruction_psnr_db"),
        "about 2 min (estimated)",
        f"{GLYPHS}/card.yaml",
        "reconstruction_psnr_db",
    ),
}


def marked(text: str) -> dict[str, str]:
    """Name -> what stands between its markers. Raises ValueError for markers that do not pair up, or a name that stands twice."""
    found = MARKED.findall(text)
    names = [name for _, name, _, _ in found]
    if len(MARKER.findall(text)) != 2 * len(found) or any(MARKER.search(body) for _, _, body, _ in found):
        raise ValueError("the markers <!-- table: NAME --> and <!-- end --> do not pair up; each stands on a line of its own")
    if len(set(names)) < len(names):
        raise ValueError(f"a table stands twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
    return {name: body for _, name, body, _ in found}


def stored(text: str, name: str, table: Table) -> str | None:
    """What the file holds at the place of a table, without the newline at the end; None if it has no place for it."""
    if not table.key:
        body = marked(text).get(name)
        return None if body is None else body.removesuffix("\n")
    found = _of_key(table.key).search(text)
    return found and found.group().removesuffix("\n")


def replaced(text: str, name: str, table: Table, body: str) -> str:
    """The text of a file with a table in its place. Raises ValueError if it has none."""
    if stored(text, name, table) is None:
        looked_for = f"key {table.key}" if table.key else f"<!-- table: {name} -->"
        raise ValueError(f"{table.place} has no {looked_for}, so there is no place for the table")
    if table.key:
        return _of_key(table.key).sub(lambda _: body + "\n", text, count=1)
    return MARKED.sub(lambda m: f"{m[1]}{body}\n{m[4]}" if m[2] == name else m[0], text)


def _of_key(key: str) -> re.Pattern[str]:
    """A key of a YAML file in block style, and all lines of its value."""
    return re.compile(rf"^{key}:.*\n(?:[ -].*\n)*", re.MULTILINE)


def write(name: str, table: Table, body: str, root: Path) -> bool:
    """Puts a table in its place; whether that changed the file, which is read now, for others may have changed it meanwhile."""
    path = root / table.place
    before = path.read_text(encoding="utf-8")
    after = replaced(before, name, table, body)
    if after != before:
        with replacing(path) as part:
            part.write_text(after, encoding="utf-8")
    return after != before


def measure(table: Table, work: Path) -> str:
    """The table, measured as far as its results are not there. Raises Incomplete, and RuntimeError if a script fails."""
    try:
        return table.made(work)
    except Incomplete:
        pass
    work.mkdir(parents=True, exist_ok=True)
    for step in table.steps:
        command = step.command(work)
        print("$ python " + " ".join(command), flush=True)
        done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with exit code {done.returncode}")
    return table.made(work)


def reproduce(names: Sequence[str], work: Path, root: Path = ROOT) -> list[str]:
    """Measures and writes tables one after the other; the names of those that failed."""
    failed = []
    for name in names:
        try:
            body = measure(TABLES[name], work)
            changed = write(name, TABLES[name], body, root)
            print(f"{name}: {TABLES[name].place} {'has the new table' if changed else 'held this already'}", flush=True)
        except (Incomplete, RuntimeError, ValueError) as error:
            print(f"{name}: not written: {error}", flush=True)
            failed.append(name)
    return failed


def check(names: Sequence[str], work: Path, root: Path = ROOT) -> list[str]:
    """Says which tables are those that the results in the work folder make; the names of the others."""
    others = []
    for name in names:
        table = TABLES[name]
        try:
            held = (stored((root / table.place).read_text(encoding="utf-8"), name, table) or "").splitlines()
            made = table.made(work).splitlines()
        except (Incomplete, ValueError) as error:
            print(f"{name}: cannot be compared: {error}")
            others.append(name)
            continue
        print(f"{name}: {'the same' if held == made else 'differs'} in {table.place}")
        if held != made:
            others.append(name)
            print("\n".join([f"  - {line}" for line in held if line not in made] + [f"  + {line}" for line in made if line not in held]))
    return others


def listing(work: Path) -> str:
    """All tables, where they stand, what measures them and how long that takes."""
    lines = []
    for name, table in TABLES.items():
        lines.append(f"{name}: {table.place}{f', {table.key}' if table.key else ''}; {table.time}")
        lines += ["    python " + " ".join(step.command(work)) for step in table.steps]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(TABLES), choices=list(TABLES), metavar="NAME", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--check", action="store_true", help="compare the tables with the results in --work, and write nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/tables"), help="where the results are kept (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.list:
        print(listing(options.work))
        return 0
    work = options.work.resolve()
    return int(bool(check(options.only, work) if options.check else reproduce(options.only, work)))


if __name__ == "__main__":
    sys.exit(main())
