"""Tables from stored arrays: the numbers, what they are called, and paired differences."""

import csv

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invsolve.cli import main
from invsolve.config import ConfigError, load
from invsolve.evaluation import compare, evaluate, score
from invsolve.evaluation.perceptual import Lpips
from operators import GaussianBlur

COUNT = 5


@pytest.fixture
def runs(work, prior):
    """Two runs of five images, three samples each, with different sampling noise."""
    for seed, name in ((0, "zero"), (1, "one")):
        config = load("small.yaml", ["data.indices=0-4", "samples=3", f"seed={seed}", f"out=runs/{name}"])
        evaluate(config, prior, say=lambda line: None)
    return work / "runs"


def stored(folder):
    return {path.stem: dict(np.load(path)) for path in sorted((folder / "arrays").iterdir())}


def unit(image):
    return np.clip((image.astype(np.float64) + 1) / 2, 0, 1)


def psnr(image, truth):
    return peak_signal_noise_ratio(unit(truth), unit(image), data_range=1)


def ssim(image, truth):
    """scikit-image's with the window of the paper, on images mirrored at the border as torchmetrics has it."""
    arguments = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0, "full": True}
    wide = [np.pad(unit(one), ((0, 0), (5, 5), (5, 5)), mode="reflect") for one in (truth, image)]
    return structural_similarity(*wide, **arguments)[1][:, 5:-5, 5:-5].mean()


def test_numbers_against_scikit_image_and_the_definition(runs):
    values = score(runs / "zero").values
    op = GaussianBlur((3, 16, 16), std=1.0)
    for id, a in stored(runs / "zero").items():
        of_samples = [psnr(s, a["x"]) for s in a["samples"]]
        assert values["one", "psnr"][id] == pytest.approx(np.mean(of_samples), abs=1e-4)
        assert values["best", "psnr"][id] == pytest.approx(max(of_samples), abs=1e-4)
        assert values["mean", "psnr"][id] == pytest.approx(psnr(a["mean"], a["x"]), abs=1e-4)
        assert values["mean", "ssim"][id] == pytest.approx(ssim(a["mean"], a["x"]), abs=1e-4)
        errors = [np.sum((unit(s) - unit(a["x"])) ** 2) / np.sum(unit(a["x"]) ** 2) for s in a["samples"]]
        assert values["one", "nmse"][id] == pytest.approx(np.mean(errors), rel=1e-4)
        assert values["best", "nmse"][id] == pytest.approx(min(errors), rel=1e-4)
        misfits = [np.mean((a["y"] - op.A(torch.from_numpy(s)[None])[0].numpy()) ** 2) / 0.05**2 for s in a["samples"]]
        assert values["one", "chi2"][id] == pytest.approx(np.mean(misfits), rel=1e-4)
    assert ("best", "chi2") not in values


def test_tables_say_what_they_hold(runs):
    found = score(runs / "zero", "none")
    column = list(found.values["mean", "psnr"].values())
    mean, error = np.mean(column), np.std(column, ddof=1) / np.sqrt(COUNT)
    text = (runs / "zero/table.md").read_text()
    assert text == found.markdown() and f"| mean of 3 | {mean:.2f} ± {error:.2f} |" in text
    assert "5 images, 3 samples each, mean ± standard error over the images" in text
    assert "best of 3 (oracle)" in text and "an oracle, no estimate" in text and "LPIPS: left out, as asked" in text
    assert "clipped to [0, 1] (data range 1)" in text and "torchmetrics" in text
    tex = (runs / "zero/table.tex").read_text()
    assert r"PSNR [dB] & SSIM & NMSE & residual chi$^2$ \\" in tex and rf"mean of 3 & {mean:.2f} $\pm$ {error:.2f}" in tex
    with (runs / "zero/table.csv").open(newline="") as file:
        assert [row[""] for row in csv.DictReader(file)] == ["one sample", "mean of 3", "best of 3 (oracle)"]
    with (runs / "zero/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT * (2 * 4 + 3) and {row["estimator"] for row in rows} == {"one", "mean", "best"}
    before = (runs / "zero/scores.csv").read_bytes()
    score(runs / "zero", "none")
    assert (runs / "zero/scores.csv").read_bytes() == before


def test_scores_need_neither_images_nor_prior(runs, work, capsys):
    for path in (work / "photos").iterdir():
        path.unlink()
    assert main(["score", "runs/zero"]) == 0
    assert "| one sample |" in capsys.readouterr().out


def test_without_truths_there_is_the_residual_alone(runs, work, prior):
    a = stored(runs / "zero")["i00"]
    np.savez(work / "m.npz", y=a["y"])
    evaluate(load("small.yaml", ["data.measurement=m.npz", "out=runs/m"]), prior, say=lambda line: None)
    found = score(work / "runs/m")
    assert [metric.name for metric in found.metrics()] == ["chi2"] and "no truths are stored" in found.markdown()


def test_comparison_is_paired(runs):
    tables = compare([runs / "zero", runs / "one"], of="one")
    first, second = (score(runs / name).values["one", "psnr"] for name in ("zero", "one"))
    differences = np.array([second[id] - first[id] for id in first])
    low, high = stats.ttest_rel(list(second.values()), list(first.values())).confidence_interval(0.95)
    (row,) = tables.differences.rows
    assert row[1] == f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert row[0].endswith(f"one − {runs / 'zero'}") and len(tables.averages.rows) == 2
    tables.write(runs / "both")
    assert (runs / "both.md").read_text() == tables.markdown() and "95 %" in tables.markdown()


def test_comparison_covers_the_common_images_and_refuses_other_truths(runs):
    (runs / "one/records/i04.json").unlink()
    text = compare([runs / "zero", runs / "one"]).markdown()
    assert "4 images" in text and "not all runs have them: i04" in text
    path = runs / "one/arrays/i03.npz"
    np.savez(path, **(stored(runs / "one")["i03"] | {"x": np.zeros((3, 16, 16), np.float32)}))
    with pytest.raises(ConfigError, match="i03: its truth is not the same"):
        compare([runs / "zero", runs / "one"])
    with pytest.raises(ConfigError, match="two runs or more"):
        compare([runs / "zero"])


def test_lpips_is_of_local_weights_and_says_which(tmp_path, monkeypatch):
    """Random weights in the place of the published ones: zero for equal images, symmetric, and named."""
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Lpips("auto").note.startswith("LPIPS: left out, for torch's hub folder holds none of alexnet")
    with pytest.raises(ConfigError, match="squeezenet1_1-b8a52dc0.pth are not in"):
        Lpips("squeeze")
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth")
    lpips = Lpips("auto")
    assert "backbone squeeze" in lpips.note
    a, b = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert lpips(a, a)["lpips"] == pytest.approx(0, abs=1e-6)
    assert lpips(a, b)["lpips"] == pytest.approx(lpips(b, a)["lpips"]) and lpips(a, b)["lpips"] > 1e-4
    assert lpips(a[:1], b[:1])["lpips"] > 0  # grey as three equal channels
    assert lpips(a[:, :16, :16], b[:, :16, :16]) == {} and "32 pixels" in lpips.note


def test_folders_that_hold_no_results_are_refused(work):
    for folder, words in (("photos", "no config.yaml"), ("nowhere", "no config.yaml")):
        with pytest.raises(ConfigError, match=words):
            score(folder)
    (work / "empty").mkdir()
    (work / "empty/config.yaml").write_text((work / "small.yaml").read_text())
    with pytest.raises(ConfigError, match="nothing is finished there"):
        score("empty")
