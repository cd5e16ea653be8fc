"""report.html: what it holds, that it holds it safely, and in a browser that it works and asks the network for nothing."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from unittest.mock import Mock
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from shared import stationary_prior

from invsolve import Posterior, sample
from invsolve.cli.main import main
from invsolve.config.load import load
from invsolve.engine.observers import Residuals
from invsolve.errors import ConfigError
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.pictures.gallery import LIMIT, Arrays, gallery
from invsolve.reports import report
from invsolve.reports.scoring import scores_of
from invsolve.runs.lightning import evaluate
from invsolve.samplers import DPS
from invsolve.schedules import DDPM
from operators import GaussianBlur

HOSTILE = '<img src=x onerror="alert(1)">&\'%2F #1 {{ 7 * 7 }}'
IDS = [HOSTILE, "i0", "i1", "i2", "i10"]
EACH = 6 + 2 + 5  # pictures of an image: large ones, more samples, and frames (of the six steps, five that are log-spaced)
CONFIG = """\
prior: any
operator: {name: gaussian_blur, std: 1}
noise: {name: gaussian, sigma: 0.05}
schedule: {name: ddpm, steps: 6}
sampler: {name: dps, zeta: 0.3}
data: {name: images, root: photos, fit: crop}
trainer: {panels: 1, logger: none}
device: cpu
progress: false
"""


def prior_of(*shape):
    return stationary_prior(torch.float64, shape)


def photographs(folder, names, side):
    folder.mkdir()
    random = np.random.default_rng(0)
    for k, name in enumerate(names):
        coarse = random.integers(0, 255, (4 + k, 4 + k, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Five images, one of a hostile name, and one that cannot be read; three samples each, with trajectories."""
    work = tmp_path_factory.mktemp("report")
    photographs(work / "photos", IDS, 16)
    (work / "photos/torn.png").write_text("<b>no image</b>")
    (work / "small.yaml").write_text(CONFIG)
    changes = [f"data.root={work / 'photos'}", "samples=3", "trajectory=true", f"out={work / 'runs/small'}"]
    lines = []
    result = evaluate(load(work / "small.yaml", changes), prior_of(3, 16, 16), say=lines.append)
    assert len(result.sampled) == len(IDS) and list(result.failed) == ["torn"]
    assert lines[-1] == f"report:   {work / 'runs/small/report.html'}"
    return work / "runs/small"


class Page(HTMLParser):
    """Tags with their attributes, the text between them, and that of each cell of the table of images."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.raw = [], "", path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(run):
    return Page(run / "report.html")


def test_nothing_is_loaded_from_elsewhere(page, run):
    names = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        for key in ("src", "href", "data-src", "srcset", "action", "style"):
            value = attributes.get(key, "data:")
            assert "//" not in value or value.startswith("data:"), value
            if key in ("src", "href", "data-src") and not value.startswith("data:"):
                found = value[1:] in names if value.startswith("#") else (run / unquote(value)).is_file()
                assert found, value
    style = page.raw[page.raw.index("<style>") : page.raw.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*)</script>", page.raw, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;") and f"script-src 'sha256-{digest}';" in policy


def test_every_id_stands_there_as_text(page):
    assert all(id in page.text for id in [*IDS, "torn"]) and "49" not in [word.strip() for word in page.text.split(" ")]
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert all(attributes.get("src") is None for attributes in page.all("img"))
    assert len(page.all("script")) == 1 and "cannot be read as an image" in page.text and "<b>no image" not in page.raw
    assert len(page.all("article")) == len(IDS)
    links = [attributes["href"] for attributes in page.all("a")]
    assert len([link for link in links if link.startswith("arrays/")]) == len(IDS)
    assert len([link for link in links if link.startswith("images/")]) == 1  # one panel was drawn


def test_the_numbers_are_those_of_score_and_of_the_arrays(page, run):
    scores = scores_of(run, "none")
    for cells in scores.table().rows:
        for text in cells:
            assert text in page.text
    for id in IDS:
        assert f"PSNR [dB] {scores.values['mean', 'psnr'][id]:.2f}" in page.text
    shares, regions = [], []
    for path in (run / "arrays").iterdir():
        with np.load(path) as stored:
            x, draws = stored["x"], stored["samples"]
        shares.append(np.mean((draws.min(0) <= x) & (x <= draws.max(0))))
        x, draws = (part.reshape(*part.shape[:-2], 4, 4, 4, 4).mean((-3, -1)) for part in (x, draws))
        regions.append(np.mean((draws.min(0) <= x) & (x <= draws.max(0))))
    for column in (shares, regions):
        assert f"{np.mean(column):.3f} ± {np.std(column, ddof=1) / np.sqrt(len(IDS)):.3f}" in page.text
    assert "50 % intervals, pixels" in page.text and "Residual against step" in page.text
    manifest = json.loads((run / "manifest.json").read_text())
    assert all(version in page.text for version in manifest["versions"].values())
    assert (run / "config.yaml").read_text().strip() in page.text and "6 forward" not in page.text  # an exact prior counts no calls


def test_pictures_are_there_once_and_at_full_size(page, run):
    pictures = [one for one in page.all("img") if "data-src" in one]
    names = [one["data-name"] for one in pictures]
    assert len(pictures) == len(IDS) * EACH and names[:6] == [
        "measurement", "truth", "posterior mean", "sample 1", "|mean \N{MINUS SIGN} truth|", "posterior std",
    ]  # fmt: skip
    assert names[6:EACH] == ["sample 2", "sample 3", *(f"step {k}" for k in (1, 2, 4, 5, 6))]
    assert len({one["data-src"] for one in pictures}) > 0.9 * len(pictures)
    (first,) = [path for path in (run / "arrays").iterdir() if path.stem == HOSTILE]
    data = base64.b64decode(pictures[1]["data-src"].partition(",")[2])
    (run.parent / "truth.webp").write_bytes(data)
    with Image.open(run.parent / "truth.webp") as shown, np.load(first) as stored:
        wanted = np.rint(np.clip((stored["x"] + 1) / 2, 0, 1) * 255).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(shown), wanted)


def test_the_same_folder_gives_the_same_bytes(run):
    before = (run / "report.html").read_bytes()
    assert report(run, "auto") == run / "report.html" and (run / "report.html").read_bytes() == before
    assert not [path for path in run.iterdir() if ".part" in path.name]


def test_nothing_but_a_report_of_the_run_is_overwritten(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"report.html: is no report of invsolve"):
        report(copy)
    assert (copy / "report.html").read_text() == "mine"
    other = re.sub('(invsolve-report" content=")[0-9a-f]{8}', r"\g<1>00000000", (run / "report.html").read_text())
    (copy / "report.html").write_text(other)
    assert main(["report", str(copy)]) == 2 and (copy / "report.html").read_text() == other
    (copy / "report.html").unlink()
    assert main(["report", str(copy), str(run)]) == 0 and (copy / "report.html").is_file()


def test_one_hundred_images_stay_below_30_mb(tmp_path, monkeypatch):
    """At 64 x 64 with four samples, from what one image more adds; and the limit holds for noise of a larger side."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", ["a", "b"], 64)
    (tmp_path / "small.yaml").write_text(CONFIG)
    evaluate(load("small.yaml", ["samples=4", "trajectory=true", "out=run"]), prior_of(3, 64, 64), say=lambda line: None)
    sizes = [report("run", "none", images=k).stat().st_size for k in (0, 2)]
    assert sizes[0] < 100_000 and sizes[0] + 100 * (sizes[1] - sizes[0]) / 2 < 30e6
    assert "Pictures are shown of the first 0 images" in (report("run", "none", images=0)).read_text()
    random = np.random.default_rng(0)
    noise = random.uniform(-1, 1, (12, 3, 160, 160)).astype(np.float32)
    frames = [(f"frame {k}", random.integers(0, 255, (160, 160, 3)).astype(np.uint8)) for k in range(8)]
    found = gallery(Arrays(noise[0], noise[1], noise[2:], noise[2:].mean(0), noise[2:].std(0), frames))
    uris = [one.uri for one in (*found.large, *found.samples, *found.frames)]
    assert len(uris) == 6 + 7 + 8 and LIMIT / 4 < sum(map(len, uris)) <= LIMIT and 100 * LIMIT < 29e6


def quiet_run(tmp_path, monkeypatch, changes, prior):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    evaluate(load("small.yaml", ["out=run", *changes]), prior, say=lambda line: None)
    page = Page(tmp_path / "run/report.html")
    return page, [one["data-name"] for one in page.all("img") if "data-name" in one]


def test_a_measurement_alone_of_a_grey_image(tmp_path, monkeypatch):
    """Without a truth the residual is all there is, and without an error no scale is set by one."""
    np.savez(tmp_path / "m.npz", y=np.random.default_rng(0).normal(0, 0.3, (1, 16, 16)).astype(np.float32))
    page, names = quiet_run(tmp_path, monkeypatch, ["data.measurement=m.npz", "samples=2"], prior_of(1, 16, 16))
    assert names == ["measurement", "posterior mean", "sample 1", "posterior std", "sample 2"]
    assert "no truths are stored" in page.text and "PSNR" not in page.text and "Coverage of intervals" not in page.text
    assert "Residual against step" in page.text


def test_one_sample_of_complex_images_from_k_space(tmp_path, monkeypatch):
    """k-space is shown by its zero-filled image; one sample has neither spread nor a mean of its own."""
    changes = ["operator=mri", "operator.acceleration=2", "data=phantom", "data.indices=0-1", "data.size=32", "samples=1"]
    page, names = quiet_run(tmp_path, monkeypatch, changes, prior_of(2, 32, 32))
    assert names == 2 * ["measurement", "truth", "sample 1", "|sample \N{MINUS SIGN} truth|"]
    assert "posterior mean" not in page.text and "Coverage of intervals" not in page.text and "one sample" in page.text


def test_a_measurement_that_is_no_image_is_not_laid_on_one(tmp_path, monkeypatch):
    """Numbers of a nonlinear sensing matrix are drawn as a raster of other sides: the truth is then what is compared."""
    photographs(tmp_path / "photos", ["a"], 16)
    changes = ["operator=phase_retrieval", "samples=2"]
    page, names = quiet_run(tmp_path, monkeypatch, changes, prior_of(3, 16, 16))
    assert names[0] == "measurement" and "posterior std" in names
    arrays = Arrays(np.zeros((1, 7, 3)), np.zeros((3, 16, 16)), np.ones((2, 3, 16, 16)), np.ones((3, 16, 16)), np.ones((3, 16, 16)))
    found = gallery(arrays)
    assert found.before == ["truth"] and found.after == ["posterior mean", "sample 1"]
    assert gallery(replace(arrays, view=np.zeros((1, 4, 4)))).before == ["measurement", "truth"]


def test_shards_write_no_report_and_a_switch_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", ["a", "b"], 16)
    (tmp_path / "small.yaml").write_text(CONFIG)
    for changes in (["data.shard=0/2", "out=shard"], ["trainer.report=false", "out=off"]):
        evaluate(load("small.yaml", ["samples=1", *changes]), prior_of(3, 16, 16), say=lambda line: None)
        assert not (tmp_path / changes[-1].removeprefix("out=") / "report.html").exists()
    (tmp_path / "off/report.html").write_text("mine")
    lines = []
    result = evaluate(load("small.yaml", ["samples=1", "out=off"]), prior_of(3, 16, 16), say=lines.append)
    assert not result.failed and "no report of invsolve" not in "".join(lines)  # nothing was sampled, so nothing is new
    (tmp_path / "off/records/b.json").unlink()
    result = evaluate(load("small.yaml", ["samples=1", "out=off"]), prior_of(3, 16, 16), say=lines.append)
    assert result.sampled == ["b"] and "report.html was not written" in lines[-1] and (tmp_path / "off/report.html").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds no config.yaml"):
        report(tmp_path / "photos")


def test_a_report_older_than_a_record_is_made_again_and_one_that_cannot_be_spoils_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", ["a", "b"], 16)
    (tmp_path / "small.yaml").write_text(CONFIG)
    lines, config = [], load("small.yaml", ["samples=1", "out=run"])

    def again():
        lines.clear()
        return evaluate(config, prior_of(3, 16, 16), say=lines.append)

    again()
    page, records = tmp_path / "run/report.html", list((tmp_path / "run/records").iterdir())
    before = page.stat().st_mtime_ns
    assert again().skipped == ["a", "b"] and page.stat().st_mtime_ns == before and "report:" not in "".join(lines)
    oldest = min(path.stat().st_mtime_ns for path in records)
    os.utime(page, ns=(oldest - 1, oldest - 1))  # as a process leaves it that was killed after its last image
    assert again().skipped == ["a", "b"] and page.stat().st_mtime_ns > before and lines[-1] == "report:   run/report.html"
    arrays = tmp_path / "run/arrays/b.npz"
    arrays.write_bytes(b"PK" + bytes(arrays.stat().st_size - 2))
    assert again().sampled == ["b"] and lines[-1] == "report:   run/report.html"  # known by its checksum, and sampled again
    page.unlink()
    for error, words in ((MemoryError(), "MemoryError"), (RuntimeError("no room"), "no room")):
        with monkeypatch.context() as patched:
            patched.setattr("invsolve.reports.page.scores_of", Mock(side_effect=error))
            assert again().skipped == ["a", "b"] and lines[-1] == f"report.html was not written: {words}"


def test_images_without_a_record_are_counted_and_infinity_is_a_number(tmp_path, monkeypatch):
    """A disk that filled up leaves no word of the images that nobody came to; a mean that is the truth has an infinite PSNR."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", ["a", "b", "c", "d"], 16)
    (tmp_path / "photos/e.png").write_text("no image")
    (tmp_path / "small.yaml").write_text(CONFIG)
    evaluate(load("small.yaml", ["samples=2", "out=run"]), prior_of(3, 16, 16), say=lambda line: None)
    run = tmp_path / "run"
    assert "4 of 5 images, 2 samples each · 1 failed" in Page(run / "report.html").text.replace("\n", " ")
    for id in ("c", "d"):
        (run / f"records/{id}.json").unlink()
    with np.load(run / "arrays/a.npz") as stored:
        held = dict(stored)
    np.savez(run / "arrays/a.npz", **held | {"mean": held["x"]})
    kept = (run / "arrays/a.npz").read_bytes()
    record = json.loads((run / "records/a.json").read_text()) | {"bytes": len(kept), "sha256": hashlib.sha256(kept).hexdigest()}
    (run / "records/a.json").write_text(json.dumps(record))
    page = Page(report(run, "none"))
    assert "2 of 5 images, 2 samples each · 1 failed · 2 not sampled" in page.text
    values = [one["data-v"] for one in page.all("td") if "data-v" in one]
    assert values.count("Infinity") == 1 and "inf" not in values


def test_residuals_are_those_of_the_denoised_estimates():
    """What the monitor tells an observer is the discrepancy of the x0_hat that the observer sees, for each row."""
    op, prior = GaussianBlur((1, 8, 8), std=1.0), prior_of(1, 8, 8)
    y = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood, wanted = GaussianLikelihood(op, y, sigma=0.1), {}

    class Both(Residuals):
        def __call__(self, event):
            places = [("a", "b").index(id) for id, _ in event.rows]
            values = likelihood.select(torch.tensor(places)).discrepancy(event.x0_hat)
            for row, value in zip(event.rows, values.tolist(), strict=True):
                wanted.setdefault(row, []).append((event.index, value))

    found = Both()
    sample(DPS(zeta=0.3), Posterior(prior, likelihood), DDPM(steps=7), n=2, ids=["a", "b"], progress=False, observe=found)
    assert list(found.kept) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    for row, readings in found.kept.items():
        assert [index for index, _ in readings] == list(range(7))
        assert readings == [(index, pytest.approx(value, rel=1e-9)) for index, value in wanted[row]]


# -- in a browser ----------------------------------------------------------------------------------------------------------

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE = 180  # seconds; a busy machine takes long to start a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the playwright package")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    try:
        subprocess.run([found[0], "--version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{found[0]} does not run: {error}")
    with api.sync_playwright() as play:
        profile = tmp_path_factory.mktemp("profile")
        context = play.chromium.launch_persistent_context(
            profile, executable_path=found[0], args=FLAGS, headless=True, viewport={"width": 1280, "height": 900}, color_scheme="light",
            timeout=PATIENCE * 1000,
        )  # fmt: skip
        context.set_default_timeout(PATIENCE * 1000)
        yield context
        context.close()


@pytest.fixture
def view(browser, run):
    """The report in a new tab, which must neither complain nor ask for anything but itself."""
    tab, said, asked = browser.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((run / "report.html").as_uri())
    yield tab
    tab.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(run / "report.html").as_uri()]


def ids_of(tab):
    return tab.locator("#images tbody tr:visible th").all_inner_texts()


def wait_until(tab, what):
    """Until an expression holds; the page's policy forbids what `Page.wait_for_function` does."""
    end = time.monotonic() + PATIENCE
    while not tab.evaluate(what):
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_the_slider_moves_by_keyboard(view):
    box = view.locator(".compare").first
    slider, after = box.locator("input"), box.locator("img").nth(1)
    slider.scroll_into_view_if_needed()
    wait_until(view, "document.querySelector('.compare img').naturalWidth === 16")
    clip = lambda: after.evaluate("one => getComputedStyle(one).clipPath")  # noqa: E731
    assert clip() == "inset(0px 0px 0px 50%)"
    slider.focus()
    for _ in range(3):
        view.keyboard.press("ArrowRight")
    assert clip() == "inset(0px 0px 0px 53%)"
    assert slider.get_attribute("aria-valuetext") == "53 % measurement, 47 % posterior mean"
    assert box.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    view.keyboard.press("Home")
    assert clip() == "inset(0px 0px 0px 0%)"
    first = box.locator("img").first.get_attribute("src")
    view.locator(".card select").first.select_option("truth")
    assert box.locator("img").first.get_attribute("src") not in (None, first)
    assert slider.get_attribute("aria-valuetext") == "0 % truth, 100 % posterior mean"


def test_the_table_sorts_and_the_pictures_follow(view, run):
    values = scores_of(run, "none").values["mean", "psnr"]
    rising = sorted(IDS, key=values.__getitem__)
    button = view.locator("#images thead button", has_text="PSNR")
    button.focus()
    view.keyboard.press("Enter")
    assert ids_of(view) == rising and view.locator("#images thead th").nth(1).get_attribute("aria-sort") == "ascending"
    assert view.locator(".card h3").all_inner_texts() == rising
    view.keyboard.press("Enter")
    assert ids_of(view) == rising[::-1] and view.locator("#images thead th").nth(0).get_attribute("aria-sort") is None
    view.locator("#images thead button", has_text="id").first.click()
    assert ids_of(view) == sorted(IDS)


def test_search_leaves_what_contains_the_words(view):
    view.locator("#search").fill("I1")
    assert ids_of(view) == ["i1", "i10"] and view.locator("#count").inner_text() == f"2 of {len(IDS)}"
    assert view.locator(".card:visible h3").all_inner_texts() == ["i1", "i10"]
    view.locator("#search").fill("<img")
    assert ids_of(view) == [HOSTILE]
    view.locator("#search").fill("")
    assert len(ids_of(view)) == len(IDS)


def test_both_schemes_and_the_button_between_them(view):
    ground = lambda: view.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = ground()
    view.locator("#theme").click()
    dark = ground()
    assert dark != light and view.locator("#theme").get_attribute("aria-pressed") == "true"
    view.locator("#theme").click()
    assert ground() == light
    view.evaluate("delete document.documentElement.dataset.theme")
    view.emulate_media(color_scheme="dark")
    # The page hears of the change by an event.
    wait_until(view, "document.getElementById('theme').getAttribute('aria-pressed') === 'true'")
    assert ground() == dark


def test_pictures_load_as_they_come_near_and_nothing_overflows(view):
    shown = "[...document.querySelectorAll('.strip img')].filter(one => one.src).length"
    assert view.evaluate(shown) < len(IDS) * EACH
    for width in (1280, 390):
        view.set_viewport_size({"width": width, "height": 844})
        assert view.evaluate("document.documentElement.scrollWidth") == width
    for card in view.locator(".card").all():
        card.locator("img").last.scroll_into_view_if_needed()
    wait_until(view, f"{shown} === {len(IDS) * EACH}")
    wait_until(view, "[...document.querySelectorAll('.strip img')].every(one => one.complete && one.naturalWidth > 0)")
