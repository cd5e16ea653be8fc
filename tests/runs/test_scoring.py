"""Tables from stored arrays: the numbers, what they are called, and paired differences."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats
from shared import save_photos
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invsolve.cli.main import main
from invsolve.config.load import load
from invsolve.errors import ConfigError
from invsolve.metrics import perceptual
from invsolve.metrics.perceptual import Lpips, SetDistances, kernel_distance
from invsolve.reports import compare, score
from invsolve.reports.reference import Reference
from invsolve.runs.lightning import evaluate
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
    path, record = runs / "one/arrays/i03.npz", runs / "one/records/i03.json"
    np.savez(path, **(stored(runs / "one")["i03"] | {"x": np.zeros((3, 16, 16), np.float32)}))
    # What is not of the length in its record is half a file.
    assert "i03" not in score(runs / "one", "none").ids
    held = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    record.write_text(json.dumps(json.loads(record.read_text()) | held))
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
    file = tmp_path / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    whole = file.read_bytes()
    for damage in (lambda: file.write_bytes(whole[:3000]), lambda: torch.save({"weight": a}, file), lambda: torch.save([a], file)):
        damage()
        with pytest.raises(ConfigError, match="lpips = squeeze: .*squeezenet1_1-b8a52dc0.pth holds no weights of squeeze"):
            Lpips("squeeze")(a, b)


def three_features(picture):
    """Of uint8 (B, 3, H, W): a mean, a product of two, and a difference across the image."""
    assert picture.dtype == torch.uint8 and picture.shape[1:] == (3, 16, 16)
    x = picture.double() / 255
    return torch.stack([x[:, 0].mean((1, 2)), (x[:, 1] * x[:, 2]).mean((1, 2)), (x[:, :, 8:] - x[:, :, :8]).mean((1, 2, 3))], 1)


def frechet(a, b):
    """The squared Frechet distance of Gaussians fitted to features (Dowson and Landau 1982)."""
    covariances = [np.cov(one, rowvar=False) for one in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_fid_and_kid_against_the_definition(runs, work):
    """The reference is cut as the images of the run were: here the centre of larger photographs."""
    (work / "others").mkdir()
    generator, others = np.random.default_rng(0), []
    for k in range(12):
        whole = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8) // (1 + k % 3)
        Image.fromarray(whole).save(work / f"others/o{k:02d}.png")
        others.append(torch.from_numpy(whole[2:18, 4:20].transpose(2, 0, 1).copy()))
    reference = three_features(torch.stack(others)).numpy()
    scores = score(runs / "zero", "none", work / "others", three_features)
    arrays = stored(runs / "zero").values()
    for estimator, images in (("one", np.concatenate([a["samples"] for a in arrays])), ("mean", np.stack([a["mean"] for a in arrays]))):
        pictures = np.round(255 * np.clip((images + 1) / 2, 0, 1)).astype(np.uint8)
        found = three_features(torch.from_numpy(pictures)).numpy()
        assert scores.sets[estimator, "fid"] == pytest.approx(frechet(found, reference), rel=1e-6)
        # The definition pair by pair.
        k = [[(f @ g / 3 + 1) ** 3 for g in (*found, *reference)] for f in (*found, *reference)]
        m, n = len(found), len(reference)
        pairs = [sum(k[i][j] for i in part for j in part if i != j) / len(part) / (len(part) - 1) for part in (range(m), range(m, m + n))]
        cross = sum(k[i][j] for i in range(m) for j in range(m, m + n)) / m / n
        assert scores.sets[estimator, "kid"] == pytest.approx(sum(pairs) - 2 * cross, rel=1e-6)
    header, first = [line for line in scores.markdown().splitlines() if line.startswith("| ")][::2][:2]
    assert header.endswith("| FID | KID |") and f"| {scores.sets['one', 'fid']:.2f} | {scores.sets['one', 'kid']:.5f} |" in first
    assert "features given; 15 samples against 12 reference images" in scores.markdown()
    with (runs / "zero/scores.csv").open(newline="") as file:
        assert {(row["estimator"], row["metric"]) for row in csv.DictReader(file) if row["id"] == ""} == set(scores.sets)


def test_the_reference_is_cut_into_crops_as_the_images_of_the_run_were(work, prior):
    """Of data crops: the same crops of the same files, whose features are those of the truths; of other data the centre, which is said."""
    save_photos(work / "wide", ["a", "b", "c"], 40, 50, 0.1)
    data = ["data=crops", "data.root=wide", "data.size=16", "data.each=2", "data.reduce=2", "data.indices=0-3"]
    evaluate(load("small.yaml", [*data, "samples=1", "out=runs/crops"]), prior, say=lambda line: None)
    config = work / "runs/crops/config.yaml"
    for name, count, words in (("crops", 6, "6 reference images, as 8 bits"), ("dataset", 3, "cut to 16 x 16, for data dataset")):
        config.write_text(config.read_text().replace("name: crops", f"name: {name}"))
        distances, images = SetDistances(three_features), Reference(work / "wide", work / "runs/crops", (3, 16, 16))
        distances.add_reference(images, images.note)
        assert distances.count("reference") == count and words in distances.note
        if name == "crops":
            wanted = [np.round(255 * unit(a["x"])).astype(np.uint8) for a in stored(work / "runs/crops").values()]
            found = torch.cat(distances._held["reference"])[: len(wanted)]
            torch.testing.assert_close(found, three_features(torch.from_numpy(np.stack(wanted))))
    save_photos(work / "little", ["a"], 20, 20, 0.1)
    config.write_text(config.read_text().replace("name: dataset", "name: crops"))
    with pytest.raises(ConfigError, match="--fid = .*little: .*does not fit into a.png"):
        list(Reference(work / "little", work / "runs/crops", (3, 16, 16)))


def test_arrays_that_are_damaged_are_named(runs):
    """Half a file is known by its length, and is not finished; what has the length and is no archive is said to be damaged."""
    path = runs / "zero/arrays/i02.npz"
    path.write_bytes(b"PK\x03\x04" + bytes(path.stat().st_size - 4))
    with pytest.raises(ConfigError, match=r"i02.npz is damaged \("):
        score(runs / "zero", "none")
    np.savez(path, y=np.zeros(1), samples=np.zeros(1))
    record = runs / "zero/records/i02.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"bytes": path.stat().st_size}))
    with pytest.raises(ConfigError, match=r"i02.npz is damaged \(.*mean"):
        score(runs / "zero", "none")


def test_kid_is_that_of_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + torch.tensor([[[0.0]], [[0.5]]])
    theirs = KernelInceptionDistance(feature=perceptual._Given(4), subsets=1, subset_size=9)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert kernel_distance(a, b) == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


def test_inception_is_of_local_weights_or_refused(runs, work, tmp_path, monkeypatch, capsys):
    """The network itself is a stand-in here; what is loaded, from where, and what never is, is not."""
    from torchmetrics.image import fid

    class Stand(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            self.load_state_dict(torch.load(feature_extractor_weights_path))
            seen.append((name, features_list))

        def forward(self, picture):
            return three_features(picture)

    seen, fetched = [], []
    monkeypatch.setattr(fid, "NoTrainInceptionV3", Stand)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *arguments, **options: fetched.append(arguments))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub_home"))
    command = ["score", "runs/zero", "--lpips", "none", "--fid", "photos"]
    assert main(command) == 2 and "nothing is downloaded" in capsys.readouterr().err
    weights = tmp_path / "hub_home/hub/checkpoints" / perceptual._INCEPTION
    weights.parent.mkdir(parents=True)
    torch.save({"state": torch.nn.Linear(2, 2)}, weights)
    with monkeypatch.context() as without:
        without.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
        assert main(command) == 2 and "pip install 'invsolve[fid]'" in capsys.readouterr().err
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: True)
    assert main(command) == 2 and "holds no weights of Inception" in capsys.readouterr().err and not seen
    weights.write_bytes(weights.read_bytes()[:300])
    assert main(command) == 2 and "holds no weights of Inception" in capsys.readouterr().err and not seen
    for held in ([torch.zeros(2)], torch.zeros(2)):
        torch.save(held, weights)
        assert main(command) == 2 and "not a dict of tensors" in capsys.readouterr().err and not seen
    torch.save({}, weights)
    monkeypatch.setattr(perceptual.importlib.metadata, "version", lambda name: "1.2.3")
    assert main(command) == 0 and seen == [("inception-v3-compat", ["2048"])] and not fetched
    out = capsys.readouterr().out
    assert "| FID | KID |" in out and "Inception V3 of torch-fidelity 1.2.3" in out and "15 samples against 24 reference images" in out
    assert main([*command[:-1], "nowhere"]) == 2 and "--fid = nowhere" in capsys.readouterr().err
    (work / "photos/i07.png").write_bytes(b"no image")
    assert main(command) == 2 and "--fid: photos/i07.png cannot be read" in capsys.readouterr().err
    distances = SetDistances(three_features)
    distances.add("one", torch.zeros(3, 3, 16, 16))
    with pytest.raises(ConfigError, match="two images or more; there are 3, and 0 in the reference"):
        distances.of("one")


def test_folders_that_hold_no_results_are_refused(work):
    for folder, words in (("photos", "no config.yaml"), ("nowhere", "no config.yaml")):
        with pytest.raises(ConfigError, match=words):
            score(folder)
    (work / "empty").mkdir()
    (work / "empty/config.yaml").write_text((work / "small.yaml").read_text())
    with pytest.raises(ConfigError, match="nothing is finished there"):
        score("empty")
