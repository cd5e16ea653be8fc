"""Noise: its statistics, where it falls, and that it depends on seed and id alone."""

import pytest
import torch

from operators import NOISES, GaussianNoise, Identity, Inpainting, PoissonNoise, SuperResolution, find, generator


def test_streams_are_told_apart() -> None:
    keys: list[tuple[int | str, ...]] = [(), (1,), ("1",), (1, 2), (2, 1), (12,), ("ab",), ("a", "b"), ("", "ab"), (-1,)]
    draws = [float(torch.rand((), generator=generator(0, *key), dtype=torch.float64)) for key in keys]
    draws.append(float(torch.rand((), generator=generator(1), dtype=torch.float64)))
    assert len(set(draws)) == len(draws)
    assert torch.equal(torch.rand(3, generator=generator(4, "x")), torch.rand(3, generator=generator(4, "x")))


@pytest.mark.parametrize("bad", [(1.5,), (True,), (0, 2.0), (0, None), (0, False)])
def test_streams_refuse_other_keys(bad: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="must be an int"):
        generator(*bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_noise_statistics(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 1, 100, 100, dtype=dtype)
    y = Identity((1, 100, 100)).measure(x, noise=0.3, seed=3)
    n = y.numel()
    assert y.dtype == dtype
    # Five standard errors of the mean and of the variance.
    assert abs(float(y.mean())) < 5 * 0.3 / n**0.5
    assert abs(float(y.var()) / 0.09 - 1) < 5 * (2 / n) ** 0.5


def test_single_and_double_precision_see_the_same_noise() -> None:
    op = Identity((3, 4))
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert (op.measure(x) - op.measure(x.float())).abs().max() < 1e-8


def test_poisson_noise_statistics() -> None:
    x = torch.full((4, 1, 100, 100), 0.2, dtype=torch.float64)
    y = Identity((1, 100, 100)).measure(x, noise=PoissonNoise(gain=0.05), seed=1)
    n = y.numel()
    assert abs(float(y.mean()) - 0.6) < 5 * (0.05 * 0.6 / n) ** 0.5
    # The fourth central moment of Poisson(12) is 12 (1 + 36): standard error of the variance from it.
    assert abs(float(y.var()) / (0.05 * 0.6) - 1) < 5 * ((37 / 12 - 1) / n) ** 0.5
    assert torch.allclose(y / 0.05, (y / 0.05).round())


@pytest.mark.parametrize("noise", [0.1, GaussianNoise(0.1), PoissonNoise(0.01)])
def test_rows_depend_on_their_id_only(noise: float) -> None:
    op = SuperResolution((1, 8, 8), 2)
    x = torch.rand(3, 1, 8, 8, generator=generator(0))
    together = op.measure(x, noise, seed=7, ids=["a", 4, "c"])
    for b, name in enumerate(["a", 4, "c"]):
        assert torch.equal(together[b : b + 1], op.measure(x[b : b + 1], noise, seed=7, ids=[name]))
    assert torch.equal(op.measure(x, noise), op.measure(x, noise, ids=[0, 1, 2]))
    assert not torch.equal(together, op.measure(x, noise, seed=8, ids=["a", 4, "c"]))


def test_global_generator_is_untouched() -> None:
    state = torch.get_rng_state()
    op = Identity((1, 4, 4))
    op.measure(torch.zeros(2, 1, 4, 4))
    op.measure(torch.zeros(2, 1, 4, 4), PoissonNoise())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("noise", [0.5, PoissonNoise(0.5)])
def test_hidden_pixels_get_no_noise(noise: float) -> None:
    op = Inpainting((3, 8, 8), size=4)
    y = op.measure(torch.rand(2, 3, 8, 8, generator=generator(0)), noise)
    assert not y[:, :, op.mask[0] == 0].any()
    assert torch.equal(op.restrict(y), y)


def test_no_noise_is_exact() -> None:
    x = torch.rand(2, 3, generator=generator(0))
    assert torch.equal(Identity((3,)).measure(x, noise=0.0), x)


@pytest.mark.parametrize(
    ("name", "options"),
    [("gaussian", {"sigma": -0.1}), ("gaussian", {"sigma": float("nan")}), ("poisson", {"gain": 0.0})],
)
def test_noise_refusals(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        find(NOISES, name)(**options)
