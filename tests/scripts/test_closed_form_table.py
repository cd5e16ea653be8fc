"""The table of biases in the README: every row that its script has, and figures that another seed gives again."""

import math
import sys

import pytest
from problems import modes, problem_mixture, problem_r1

from invsolve.resources import resource
from invsolve.samplers import DAPS

sys.path.insert(0, str(resource("scripts")))
table = pytest.importorskip("closed_form_table", reason="the scripts are not part of an installed package")
SECTION = resource("README.md").read_text().partition("## Samplers\n")[2].partition("\n- ")[0]
SHOWN = {cells[0]: cells[1:] for line in SECTION.splitlines() if len(cells := [c.strip() for c in line.strip("|").split("|")]) == 10}
# Rows of a second or less; the others differ from these in their inner chain, which has tests of its own.
QUICK = [row for row in table.ROWS if not any(word in row.label for word in ("langevin", "hmc", "projected", "skrock"))]


def test_the_readme_has_the_rows_of_the_script_and_the_exact_figures():
    assert list(SHOWN) == [table.HEAD.split("|")[1].strip(), "---", "exact posterior", "exact draws", *(row.label for row in table.ROWS)]
    exact = table.exact_lines(50).splitlines()[0]
    assert [cell.strip() for cell in exact.strip("|").split("|")][1:] == SHOWN["exact posterior"]


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.label)
def test_the_figures_of_the_mixture(row):
    forward, backward, *_, weight, mode_mean, mode_spread, mean, spread = SHOWN[row.label]
    exact, n = problem_mixture().exact(), 2000
    draws, calls = table.draw(row, problem_mixture(), n, seed=1)
    assert calls == (int(forward), int(backward))
    found, w = table.mixture_figures(draws, exact), float(weight)
    # Both sides were drawn; half a unit of the last digit shown is added.
    both = 1 / n + 1 / table.DRAWS
    assert found["weight"] == pytest.approx(w, abs=4.5 * math.sqrt(max(w * (1 - w), 1 / n) * both) + 5e-4)
    fewest = both / min(float(modes(draws, exact).weights.min()), w, 1 - w)
    for gap, ratios, share, shown_gap, shown in (
        (found["mode_mean"], found["mode_spread"], fewest, mode_mean, mode_spread),
        (found["mean"], found["spread"], both, mean, spread),
    ):
        low, high = map(float, shown.split(" to "))
        assert gap == pytest.approx(float(shown_gap), abs=4.5 * math.sqrt(high * share) + 5e-3)
        assert ratios == pytest.approx((low, high), abs=4.5 * high * math.sqrt(2 * share) + 5e-3)


@pytest.mark.parametrize("row", [row for row in QUICK if row.affine and "000" not in row.label], ids=lambda row: row.label)
def test_the_exact_figures_of_r1(row):
    found = table.r1_figures(row, n=0)
    _, _, second, variances, *_ = SHOWN[row.label]
    assert found["second"] == pytest.approx(float(second), abs=6e-4)
    assert found["variances"] == pytest.approx([float(v) for v in variances.split(", ")], abs=6e-4)


def test_a_row_behind_an_autoencoder_is_the_row_itself():
    plain, latent = (table.Row("", DAPS(inner="langevin", inner_steps=3), table.DDPM(steps=5), latent=latent) for latent in (False, True))
    a, b = (table.draw(row, problem_r1(), 4)[0] for row in (plain, latent))
    assert (a - b).abs().max() < 1e-12 and a.std() > 0


def test_draws_of_the_posterior_are_without_bias_and_wrong_ones_are_not():
    exact, n = problem_mixture().exact(), 4000
    draws = exact.draw(n).reshape(n, 2)
    found = table.mixture_figures(draws, exact)
    assert found["weight"] == pytest.approx(0.405, abs=4.5 * found["weight_error"])
    assert found["mode_mean"] < 4.5 * math.sqrt(2 / (0.4 * n)) and found["mean"] < 4.5 * math.sqrt(2 / n)
    assert found["mode_spread"] == pytest.approx((1, 1), abs=4.5 * math.sqrt(2 / (0.4 * n)))
    shifted = draws.clone()
    shifted[:, 1] += 0.1  # half a standard deviation
    assert table.mixture_figures(shifted, exact)["mode_mean"] == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="the modes hold"):
        modes(draws[draws[:, 1] > 0], exact)
