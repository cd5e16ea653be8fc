"""Noise: its statistics, where it falls, and that it depends on seed and id alone."""

import re

import pytest
import torch

from operators import (
    HDR,
    JPEG,
    NOISES,
    ComplexGaussianNoise,
    GaussianBlur,
    GaussianNoise,
    Identity,
    Inpainting,
    Operator,
    PoissonGaussianNoise,
    PoissonNoise,
    StructuredSensing,
    SuperResolution,
    find,
    from_callable,
    generator,
)


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


@pytest.mark.parametrize(("gain", "sigma"), [(0.05, 0.4), (1e-9, 0.4), (0.05, 0.0)])
@pytest.mark.parametrize("level", [0.2, -1.0])
def test_poisson_gaussian_noise_statistics(gain: float, sigma: float, level: float) -> None:
    x = torch.full((4, 1, 100, 100), level, dtype=torch.float64)
    y = Identity((1, 100, 100)).measure(x, noise=PoissonGaussianNoise(gain, sigma), seed=1)
    n, u = y.numel(), (level + 1) / 2
    # sigma is quoted where images span [-1, 1]; y counts on [0, 1].
    variance = gain * u + (sigma / 2) ** 2
    assert abs(float(y.mean()) - u) < 5 * (variance / n) ** 0.5 + 1e-15
    assert abs(float(y.var()) - variance) < 5 * variance * (3 / n) ** 0.5 + 1e-15


def test_poisson_gaussian_noise_without_read_out_is_poisson_noise() -> None:
    op, x = Identity((1, 8, 8)), torch.rand(2, 1, 8, 8, generator=generator(0))
    assert torch.equal(op.measure(x, PoissonGaussianNoise(0.1, 0.0)), op.measure(x, PoissonNoise(0.1)))


FOURIER = from_callable(torch.fft.fft2, (1, 100, 100), linear=True)


@pytest.mark.parametrize(("std_of", "part"), [("part", 0.3), ("modulus", 0.3 / 2**0.5)])
def test_complex_noise_statistics(std_of: str, part: float) -> None:
    x = torch.zeros(2, 1, 100, 100, dtype=torch.float64)
    noise = ComplexGaussianNoise(0.3, std_of=std_of)  # type: ignore[arg-type]
    y = FOURIER.measure(x, noise, seed=2)
    n = y.numel()
    for values in (y.real, y.imag):
        assert abs(float(values.var()) / part**2 - 1) < 5 * (2 / n) ** 0.5
    assert abs(float((y.real * y.imag).mean())) < 5 * part**2 / n**0.5
    # The likelihood counts real and imaginary parts as two values of this standard deviation.
    assert noise.parameters == {"sigma": pytest.approx(part)}
    assert torch.equal(FOURIER.measure(x, GaussianNoise(noise.std), seed=2), y)


def test_complex_noise_on_pairs_of_parts_and_on_nothing_else() -> None:
    pairs = Identity((2, 6, 5))
    x = torch.zeros(1, 2, 6, 5)
    assert torch.equal(pairs.measure(x, ComplexGaussianNoise(0.1)), pairs.measure(x, 0.1))
    with pytest.raises(ValueError, match=r"pairs \(B, 2, ...\), got a real \(1, 3, 6, 5\)"):
        Identity((3, 6, 5)).measure(torch.zeros(1, 3, 6, 5), ComplexGaussianNoise(0.1))


@pytest.mark.parametrize("name", ["gaussian", "complex_gaussian", "poisson_gaussian"])
def test_sigma_may_be_quoted_on_either_range(name: str) -> None:
    kind = find(NOISES, name)
    op, x = Identity((2, 6, 5)), torch.rand(1, 2, 6, 5, generator=generator(0), dtype=torch.float64)
    image, unit = kind(sigma=0.05), kind(sigma=0.025, units="unit")
    assert torch.equal(op.measure(x, image), op.measure(x, unit))
    assert not torch.equal(op.measure(x, image), op.measure(x, kind(sigma=0.025)))
    # What is added, and what the likelihood is given, is in the units of y: those of the image, or for counts [0, 1].
    assert image.std == unit.std == (0.025 if name == "poisson_gaussian" else 0.05)
    assert image.parameters == unit.parameters
    assert unit.parameters["sigma"] == unit.std
    for noise in (image, unit):
        assert "sigma 0.05 where images span [-1, 1] = 0.025 where they span [0, 1]" in noise.describe()


@pytest.mark.parametrize("name", NOISES)
def test_every_noise_describes_itself_in_one_line(name: str) -> None:
    noise = find(NOISES, name)()
    assert "\n" not in noise.describe()
    assert "noise" in noise.describe()
    assert all(isinstance(value, float) for value in noise.parameters.values())
    assert noise.intensity == ("poisson" in name)


@pytest.mark.parametrize("noise", [0.1, GaussianNoise(0.1), PoissonNoise(0.01), PoissonGaussianNoise(0.01, 0.1)])
def test_rows_depend_on_their_id_only(noise: float) -> None:
    op = SuperResolution((1, 8, 8), 2)
    x = torch.rand(3, 1, 8, 8, generator=generator(0))
    together = op.measure(x, noise, seed=7, ids=["a", 4, "c"])
    for b, name in enumerate(["a", 4, "c"]):
        assert torch.equal(together[b : b + 1], op.measure(x[b : b + 1], noise, seed=7, ids=[name]))
    assert torch.equal(op.measure(x, noise), op.measure(x, noise, ids=[0, 1, 2]))
    assert not torch.equal(together, op.measure(x, noise, seed=8, ids=["a", 4, "c"]))


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (HDR((3, 8, 8)), "HDR takes images in"),
        (JPEG((3, 8, 8)) @ GaussianBlur((3, 8, 8), 1.0), "ComposedOperator takes images in"),
        (StructuredSensing((3, 8, 8), 90), r"non-negative measurement; \d+% of StructuredSensing's would be lost"),
        (from_callable(lambda x: torch.fft.fft2(x), (3, 8, 8), linear=True), "gives a complex one"),
    ],
)
@pytest.mark.parametrize("noise", [PoissonNoise(0.01), PoissonGaussianNoise(0.01, 0.1)])
def test_counts_of_what_is_not_light_are_refused(op: Operator, message: str, noise: PoissonNoise) -> None:
    x = torch.rand(2, 3, 8, 8, generator=generator(0), dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        op.measure(2 * x - 1, noise)


def test_counts_through_bicubic_lobes() -> None:
    """A single bright pixel is the worst case; its negative lobes are cut off, not refused."""
    op, x = SuperResolution((1, 32, 32), 2), -torch.ones(1, 1, 32, 32, dtype=torch.float64)
    x[..., 16, 16] = 1
    rate = op.A((x + 1) / 2)
    assert float(rate.min()) < 0
    assert torch.allclose(op.measure(x, PoissonNoise(1e-9)), rate.clamp(min=0), atol=1e-4)


def test_global_generator_is_untouched() -> None:
    state = torch.get_rng_state()
    op = Identity((1, 4, 4))
    op.measure(torch.zeros(2, 1, 4, 4))
    op.measure(torch.zeros(2, 1, 4, 4), PoissonNoise())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("noise", [0.5, PoissonNoise(0.5), PoissonGaussianNoise(0.5, 0.5)])
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
    [
        ("gaussian", {"sigma": -0.1}),
        ("gaussian", {"sigma": float("nan")}),
        ("gaussian", {"units": "[0, 1]"}),
        ("complex_gaussian", {"sigma": -0.1}),
        ("complex_gaussian", {"std_of": "both"}),
        ("poisson", {"gain": 0.0}),
        ("poisson_gaussian", {"gain": -1.0}),
        ("poisson_gaussian", {"sigma": float("inf")}),
        ("poisson_gaussian", {"units": "percent"}),
    ],
)
def test_noise_refusals(name: str, options: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match=f"got {re.escape(repr(next(iter(options.values()))))}"):
        find(NOISES, name)(**options)
