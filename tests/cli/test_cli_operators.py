"""``invsolve check``, ``invsolve show-operator``, operators of the user's own and lists of operators in a configuration, units of sigma."""

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from invsolve.config.identity import show
from invsolve.config.load import load
from invsolve.likelihoods.gaussian import GaussianLikelihood
from operators import GaussianBlur, SuperResolution

MINE = """
from operators import GaussianBlur, LinearOperator, from_callable

def make(image_shape, gain: float = 1.0, text: str = "a"):
    return from_callable(lambda x: gain * x, image_shape, linear=True)

def grey(image_shape):
    if image_shape[0] != 1:
        raise ValueError(f"one channel, got {image_shape}")
    return make(image_shape)

def gamma(image_shape):
    return from_callable(lambda x: ((x + 1) / 2).clamp(0).sqrt(), image_shape)

class Wrong(GaussianBlur):
    def _adjoint(self, y):
        return 1.1 * super()._adjoint(y)
"""


@pytest.fixture
def mine(work):
    (work / "mine.py").write_text(MINE)
    return "mine.py"


class TestCheck:
    def test_a_right_operator(self, cli, work):
        outcome = cli("check", "operator=super_resolution", "operator.factor=2", "image_shape=[1,8,8]")
        assert outcome.code == 0 and not outcome.err
        lines = outcome.out.strip().splitlines()
        assert lines[0].startswith("SuperResolution: (1, 8, 8) -> (1, 4, 4), linear, prox in closed form")
        assert lines[2].split()[1:] == ["float64", "x1", "float64", "x3", "float32", "x1", "float32", "x3", "bounds"]
        assert lines[-1] == "all laws hold"
        assert not list(work.iterdir())

    def test_a_wrong_adjoint_gives_code_1(self, cli, mine):
        outcome = cli("check", "operator=custom", f"operator.target={mine}:Wrong", "operator.std=0.8", "image_shape=[1,8,8]")
        assert outcome.code == 1
        row = next(line for line in outcome.out.splitlines() if line.startswith("adjoint"))
        assert row.count("FAIL") == 4
        assert outcome.out.strip().splitlines()[-1].startswith("broken (") and "adjoint;" in outcome.out

    def test_default_shape_is_the_first_that_the_operator_takes(self, cli, mine):
        outcome = cli("check", "operator=custom", f"operator.target={mine}:grey")
        assert outcome.code == 0 and outcome.out.startswith("CallableLinearOperator: (1, 64, 64) -> (1, 64, 64)")

    def test_seed_changes_the_signals(self, cli, work):
        shape = "image_shape=[1,8,8]"
        tables = [cli("check", "operator=super_resolution", shape, f"seed={seed}").out for seed in (0, 0, 1)]
        assert tables[0] == tables[1] != tables[2]

    @pytest.mark.parametrize(
        ("arguments", "fragments"),
        [
            ([], ["operator=NAME is needed", "gaussian_blur"]),
            (["operator.std=1"], ["operator=NAME is needed"]),
            (["operator=blurr"], ["unknown operator 'blurr'", "gaussian_blur"]),
            (["operator=gaussian_blur", "operator.sdt=1"], ["operator.sdt", "did you mean operator.std?"]),
            (["operator=gaussian_blur", "operator.std=0"], ["operator gaussian_blur", "std", "0.0"]),
            (["operator=gaussian_blur", "sampler=dps"], ["unknown key sampler", "image_shape, seed, device"]),
            (["operator=gaussian_blur", "image_shape=12"], ["image_shape = 12", "a list"]),
            (["operator=gaussian_blur", "operator.image_shape=[1,8,8]"], ["operator.image_shape cannot be set"]),
            (["operator=super_resolution", "image_shape=[1,10,10]"], ["factor 4", "10x10"]),
            (["operator=identity", "device=gpu0"], ["device = gpu0", "not available"]),
            (["operator=custom"], ["operator.target is missing"]),
            (["operator=custom", "operator.target=mine.py:mk"], ["operator.target = mine.py:mk", "has no 'mk'", "make"]),
            (["operator=custom", "operator.target=mine.py:make", "operator.gian=2"], ["did you mean operator.gain?", "target, gain, text"]),
            (["operator=custom", "operator.target=mine.py:make", "operator.gain=big"], ["operator.gain = 'big'", "a number"]),
            (["operator=compose", "operator.parts=[]"], ["operator compose", "at least one"]),
            (["operator=compose", "operator.parts=blur"], ["operator.parts = 'blur'", "a list"]),
            (["operator=stack", "operator.parts=[identity, {name: blurr}]"], ["operator.parts[1]", "unknown operator 'blurr'"]),
            (["operator=stack", "operator.parts=[{name: gaussian_blur, std: x}]"], ["operator.parts[0]: operator.std = 'x'", "a number"]),
            (["operator=stack", "operator.parts=[{std: 1}]"], ["operator.parts[0]: operator.name = None"]),
        ],
    )
    def test_refusals(self, cli, mine, arguments, fragments):
        refused(cli("check", *arguments), *fragments)


class TestShow:
    @pytest.fixture
    def photo(self, photos):
        return photos / "a.png"

    def picture(self, path):
        with Image.open(path) as opened:
            assert opened.format == "PNG"
            return np.asarray(opened.convert("RGB"))

    def test_writes_four_pictures_of_a_linear_operator(self, cli, photo, work):
        outcome = cli("show-operator", "operator=inpainting", "operator.size=8", f"image={photo}", "out=look.png", "size=16")
        assert outcome.code == 0 and not outcome.err
        assert "sigma 0.05 where images span [-1, 1] = 0.025 where they span [0, 1]" in outcome.out
        assert outcome.out.strip().endswith("picture: look.png")
        four = self.picture("look.png")
        assert four.shape[1] > 3.5 * 300 and four.std() > 20
        # Fewer for one that is not linear, and the words say so.
        (work / "mine.py").write_text(MINE)
        two = ["show-operator", "operator=custom", "operator.target=mine.py:gamma", f"image={photo}", "out=two.png"]
        assert cli(*two).code == 0
        assert self.picture("two.png").shape[1] < 0.8 * four.shape[1]

    def test_pictures_are_what_they_say(self, photo, work):
        from invsolve.cli.operators import _pictures
        from invsolve.data.images import Images
        from operators import GaussianNoise, PoissonNoise

        x = torch.from_numpy(Images(root=str(photo), size=16).items()[0].load()).double()[None]
        op = SuperResolution((3, 16, 16), 2)
        truth, seen, back, inverse = _pictures(op, GaussianNoise(0.0), x, 0, "a")
        assert [p.title for p in (truth, seen, back, inverse)] == ["truth", "measurement", "adjoint", "pseudo-inverse"]
        y = op.A(x)
        assert torch.equal(truth.content, x[0]) and torch.equal(seen.content, op.view(y)[0])
        scaled = op.A_adjoint(y)[0]
        assert torch.allclose(back.content, scaled / scaled.abs().max())
        assert torch.equal(inverse.content, op.A_dagger(y).clamp(-1, 1)[0])
        assert "closed form" in inverse.caption and "3 x 8 x 8, 192 measured" in seen.caption
        # Counts are of the image in [0, 1]; with very many photons their pictures are those without noise.
        counted = _pictures(op, PoissonNoise(1e-9), x, 0, "a")
        for few, without in zip((counted[1], counted[3]), (seen, inverse), strict=True):
            assert torch.allclose(few.content, without.content, atol=1e-3)
        # What is not negative is shown from black.
        back = op.A_adjoint(op.A((x + 1) / 2))[0]
        assert torch.allclose(counted[2].content, 2 * back / back.max() - 1, atol=1e-3) and "[0, 1]" in counted[2].caption

    def test_an_iterative_inverse_of_noisy_data_is_found_in_few_steps(self, photo, work):
        from invsolve.cli.operators import _pictures
        from operators import GaussianNoise, Tomography

        op = Tomography((3, 16, 16), views=15)
        op.max_iter = 60
        x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
        inverse = _pictures(op, GaussianNoise(0.05), x, 0, "a")[3]
        assert inverse.content is not None and "stopped\nat a residual of 0.01" in inverse.caption
        assert float((inverse.content - x[0]).norm()) < 0.5 * float(x.norm())

    def test_an_inverse_that_is_not_found_is_said(self, photo, work):
        from invsolve.cli.operators import _pictures
        from operators import GaussianNoise, from_callable

        op = from_callable(lambda x: x.cumsum(-1), (3, 16, 16), linear=True)
        op.max_iter = 1
        pictures = _pictures(op, GaussianNoise(0.1), torch.rand(1, 3, 16, 16, dtype=torch.float64), 0, "a")
        assert pictures[3].content is None and "conjugate gradients reached" in pictures[3].caption

    def test_a_folder_and_the_refusal_to_overwrite(self, cli, photo, work):
        command = ["show-operator", "operator=identity", f"image={photo}", "out=looks", "noise.sigma=0.5"]
        assert cli(*command).code == 0
        file = work / "looks" / "a_identity.png"
        before = file.read_bytes()
        refused(cli(*command, "seed=1"), "looks/a_identity.png: exists", "--overwrite")
        assert file.read_bytes() == before
        assert cli(*command, "seed=1", "--overwrite").code == 0
        assert file.read_bytes() != before
        assert cli("show-operator", "--overwrite", *command[1:]).code == 0
        assert file.read_bytes() == before
        assert [path.name for path in (work / "looks").iterdir()] == ["a_identity.png"]

    def test_channels_follow_the_operator(self, cli, photo, mine):
        from invsolve.cli.operators import _with_channels

        assert cli("show-operator", "operator=custom", f"operator.target={mine}:grey", f"image={photo}", "out=grey.png").code == 0
        rgb = 2 * torch.rand(1, 3, 4, 4, dtype=torch.float64) - 1
        assert torch.equal(_with_channels(rgb, 3), rgb)
        white = torch.ones(1, 3, 4, 4, dtype=torch.float64)
        assert torch.allclose(_with_channels(white, 1), white[:, :1])
        assert torch.allclose(_with_channels(-white, 2), torch.zeros(1, 2, 4, 4).double())
        assert float(_with_channels(rgb, 2)[:, 1].abs().max()) == 0

    @pytest.mark.parametrize(
        ("arguments", "fragments"),
        [
            (["operator=identity", "out=a.png"], ["image is missing: show-operator needs it"]),
            (["operator=identity", "image=photos/a.png"], ["out is missing"]),
            (["operator=identity", "image=no.png", "out=a.png"], ["no.png", "no such file"]),
            (["operator=identity", "image=photos", "out=a.png"], ["image = photos: 4 images; name one"]),
            (["image=photos/a.png", "out=a.png"], ["operator=NAME is needed"]),
            (["operator=super_resolution", "image=photos/a.png", "out=a.png", "size=10"], ["factor 4", "10x10"]),
            (["operator=identity", "image=photos/a.png", "out=a.png", "noise=complex_gaussian"], ["operator identity", "complex"]),
            (["operator=identity", "image=photos/a.png", "out=a.png", "noise.units=percent"], ["noise.units = 'percent'", "image, unit"]),
            (["operator=identity", "image=photos/a.png", "out=a.png", "overwrite=true"], ["unknown key overwrite"]),
        ],
    )
    def test_refusals(self, cli, photos, arguments, fragments):
        refused(cli("show-operator", *arguments), *fragments)
        assert not (photos.parent / "a.png").exists()


class TestConfigurations:
    """Operators of one's own, lists of operators and units in a run."""

    def test_a_run_with_an_operator_from_a_file(self, small, cli, mine):
        picks = ["operator=custom", f"operator.target={mine}:make", "operator.gain=0.5", "data.indices=0"]
        assert cli("run", small, *picks, "out=runs/mine").code == 0
        with np.load("runs/mine/arrays/a.npz") as stored:
            assert np.std(stored["y"] - 0.5 * stored["x"]) == pytest.approx(0.05, rel=0.15)
        # What a run wrote is a configuration that gives the same run.
        assert cli("run", "runs/mine/config.yaml", "out=runs/again").code == 0
        for folder in ("mine", "again"):
            assert load(f"runs/{folder}/config.yaml").sections["operator"].values == {"target": "mine.py:make", "gain": 0.5, "text": "a"}

    def test_a_list_of_operators_is_completed_and_reads_back(self, small, work):
        config = load(small, ["operator=compose", "operator.parts=[{name: gaussian_blur, std: 1}, super_resolution]"])
        parts = config.sections["operator"].values["parts"]
        assert [part["name"] for part in parts] == ["gaussian_blur", "super_resolution"]
        assert parts[0]["std"] == 1.0 and isinstance(parts[0]["std"], float) and parts[1]["factor"] == 4
        (work / "again.yaml").write_text(show(config))
        assert load("again.yaml").as_dict() == config.as_dict()
        op = config.sections["operator"].build(image_shape=(3, 16, 16))
        x = torch.rand(1, 3, 16, 16)
        assert torch.equal(op.A(x), SuperResolution((3, 16, 16)).A(GaussianBlur((3, 16, 16), 1.0).A(x)))

    def test_a_run_with_a_stack(self, small, cli, work):
        text = small.read_text().replace(
            "operator: {name: inpainting, kind: box, size: 6, margin: 2}",
            "operator: {name: stack, parts: [{name: inpainting, size: 6}, {name: super_resolution}]}",
        )
        small.write_text(text)
        assert cli("run", small, "data.indices=0").code == 0
        with np.load("runs/small/arrays/a.npz") as stored:
            assert stored["y"].shape == (3 * 16 * 16 + 3 * 4 * 4,)

    @pytest.mark.parametrize("sigma", [["noise.sigma=0.2"], ["noise.sigma=0.1", "noise.units=unit"]])
    def test_sigma_in_either_unit_is_the_same_run(self, small, cli, sigma, monkeypatch):

        given = []
        original = GaussianLikelihood.__init__

        def record(self, operator, y, sigma):
            given.append(sigma)
            original(self, operator, y, sigma)

        monkeypatch.setattr(GaussianLikelihood, "__init__", record)
        outcome = cli("run", small, "operator=identity", "data.indices=0", *sigma)
        assert outcome.code == 0
        assert given == [0.2]
        assert outcome.out.splitlines()[0] == "identity, Gaussian noise, sigma 0.2 where images span [-1, 1] = 0.1 where they span [0, 1]"
        with np.load("runs/small/arrays/a.npz") as stored:
            assert np.std(stored["y"] - stored["x"]) == pytest.approx(0.2, rel=0.15)

    def test_show_prints_both_units(self):
        assert "sigma: 0.05  # [-1, 1] units; 0.025 in [0, 1]" in show(load("photo_sr4"))
        assert "sigma: 0.025  # [0, 1] units; 0.05 in [-1, 1]" in show(load("photo_sr4", ["noise.sigma=0.025", "noise.units=unit"]))
        counts = show(load("photo_sr4", ["noise=poisson_gaussian"]))
        assert "sigma: 0.05  # [-1, 1] units; 0.025 in [0, 1]" in counts and "gain:" in counts

    @pytest.mark.parametrize("noise", [["noise=poisson_gaussian", "noise.gain=0.01"], ["noise=poisson", "noise.gain=0.01"]])
    def test_runs_with_counts(self, small, cli, noise):
        outcome = cli("run", small, "operator=identity", "data.indices=0", *noise)
        assert outcome.code == 0 and "one photon is 0.01" in outcome.out.splitlines()[0]
        with np.load("runs/small/arrays/a.npz") as stored:
            assert np.abs(stored["y"].mean() - (stored["x"].mean() + 1) / 2) < 0.03
