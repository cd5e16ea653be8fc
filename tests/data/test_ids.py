"""Ids as names of files: what is refused, what is told apart, and where a name leads."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from invsolve import ids
from invsolve.atomic import temporary_beside
from invsolve.errors import ConfigError
from invsolve.runs.stored import read_record

BAD = (
    *(
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/b",
        "a\\b",
        "..\\x",
        "C:evil",
        "c:/x",
        "nul",
        "CON",
        "con.tar",
        "LPT1",
        "a\0b",
        "a\nb",
        "a\x7f",
    ),
    *("x.", "x ", "...", ". .", "y" * 201, "ä" * 101, "\ud800", ".invsolve-0123abcd-1-0123abcd.part", ".x.0123abcd.12.0123abcd.part"),
)
GOOD = (
    "a",
    ".a",
    "..a",
    "a.part",
    ".part",
    ".a.part",
    ".a.part.json",
    "x.npz",
    "it's #1 & co",
    "naïve",
    "2024-01-01T10:00",
    "console",
    "y" * 200,
)


@dataclass(frozen=True)
class Thing:
    id: str
    path: Path = Path("here")
    problem: str = ""


@pytest.mark.parametrize("id", BAD)
def test_what_is_no_name_of_a_file_is_refused_and_leads_nowhere_else(id, tmp_path):
    with pytest.raises(ConfigError, match="choose another name"):
        ids.usable(id)
    name = ids.file_name(id)
    assert not ids.fault(name), "what stands for it is a name"
    path = (tmp_path / f"{name}.json").resolve()
    assert path.parent == tmp_path.resolve()
    path.write_text("{}")
    (found,) = ids.checked([Thing(id)], "data")
    assert found.id == id and "rename it" in found.problem and "\n" not in found.problem.replace(id, "")


def test_what_stands_for_bad_ids_is_one_each():
    assert len({ids.file_name(id) for id in BAD}) == len(BAD)


@pytest.mark.parametrize("id", GOOD)
def test_names_of_files_stay_as_they_are_and_are_no_temporary_ones(id):
    assert ids.usable(id) == ids.file_name(id) == id
    assert ids.temporary(f"{id}.json") is None and ids.temporary(f"{id}.npz") is None
    assert ids.checked([Thing(id)], "data") == [Thing(id)]


@pytest.mark.parametrize("id", GOOD)
def test_a_half_written_file_is_known_by_its_name_and_holds_no_id(id, tmp_path):
    path = temporary_beside(tmp_path / f"{id}.json")
    assert ids.temporary(path.name) is not None and path.suffix == ".json" and len(path.name) < 60
    path.write_text('{"id": "x", "rows": []}')
    assert read_record(path) is None


def test_two_of_one_name_are_refused_with_both_paths():
    both = [Thing("k", Path("a/k.h5")), Thing("l"), Thing("k", Path("b/k.h5"))]
    with pytest.raises(ConfigError, match=r"'k' would stand for a/k.h5, b/k.h5; rename one"):
        ids.checked(both, "data mri_data")
    ids.refuse_alike([("a", Path("a")), ("A", Path("A"))], "data", "rename one")
    for pair in (("a", "A"), ("é", "e\u0301"), ("straße", "STRASSE")):
        with pytest.raises(ConfigError, match="would stand for"):
            ids.refuse_alike([(id, Path(id)) for id in pair], "data", "rename one", folded=True)
