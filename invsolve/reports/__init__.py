"""Tables, comparisons and pages of what runs have stored. Nothing here needs Lightning."""

from invsolve.reports.comparison import compare
from invsolve.reports.page import report
from invsolve.reports.scoring import score

__all__ = ["compare", "report", "score"]
