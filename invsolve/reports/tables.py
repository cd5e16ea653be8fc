"""Tables as text: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from invsolve import atomic
from invsolve.atomic import replacing

_LATEX = {"±": r"$\pm$", "²": r"$^2$", "≤": r"$\le$", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "→": r"$\to$", "−": "$-$"}
# What names of folders may hold, and TeX would execute.
_LATEX |= {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Table:
    """Cells of text under a header, with notes that say what the numbers are; a caption stands above."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """The notes, then the table in GitHub's Markdown."""
        lines = [f"**{_one(self.caption)}**", "", *(f"- {_one(note)}" for note in self.notes), ""]
        lines += [_line(self.header), _line(["---"] * len(self.header)), *map(_line, self.rows)]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A tabular with booktabs' rules; the notes are comments, the caption stands in the first."""
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        columns = "l" + "r" * (len(self.header) - 1)
        head = " & ".join(map(_tex, self.header)) + r" \\"
        notes = [f"% {_one(text)}" for text in (self.caption, *self.notes)]
        lines = [*notes, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
        return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """The cells alone."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return text.getvalue()


def write(tables: Sequence[Table], stem: str | Path, overwrite: bool = True) -> None:
    """Writes tables to ``stem``.md, .tex and .csv, one after the other in each.

    Raises ConfigError where one of them is there and nobody said ``overwrite``.
    """
    refuse_existing(stem, overwrite)
    for suffix, text in (("md", "\n".join(t.markdown() for t in tables)), ("tex", "\n".join(t.latex() for t in tables))):
        with replacing(Path(f"{stem}.{suffix}")) as path:
            path.write_text(text, encoding="utf-8")
    with replacing(Path(f"{stem}.csv")) as path:
        path.write_bytes("\n".join(t.csv() for t in tables).encode())


def refuse_existing(stem: str | Path, overwrite: bool) -> None:
    """Raises ConfigError where a file that `write` would write is there, unless ``overwrite``."""
    for path in (Path(f"{stem}.{suffix}") for suffix in ("md", "tex", "csv")):
        atomic.refuse_existing(path, overwrite)


def average(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error: the sample standard deviation over sqrt(N); NaN for a single value)."""
    held = np.asarray(values, dtype=np.float64)
    return float(held.mean()), float(held.std(ddof=1) / math.sqrt(len(held))) if len(held) > 1 else math.nan


def plus_minus(mean: float, error: float, digits: int) -> str:
    """``mean ± error``, or the mean alone where there is no error."""
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_one(cell).replace("|", r"\|") for cell in cells) + " |"


def _tex(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one(cell))


def _one(text: str) -> str:
    """Text on one line."""
    return " ".join(text.splitlines())
