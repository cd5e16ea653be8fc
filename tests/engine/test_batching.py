"""A result depends on (seed, image id, sample index) and on nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image
from problems import problem_16, problem_mixture

from invsolve import Posterior, sample
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.priors import GaussianPrior, LatentPrior, LinearAutoencoder, NetworkPrior, PixelPrior, TrainingTable
from invsolve.resources import resource
from invsolve.samplers import DAPS, DPS, MCG, P2L, PSLD, PnPULA, ReSample, Unconditional
from invsolve.schedules import DDPM, alpha_bars
from operators import Matrix

SAMPLERS = [
    DPS(zeta=0.3),
    DPS(zeta=0.05, variant="squared"),
    DPS(variant="official", variance="posterior"),
    Unconditional(kernel="dpmpp_2m"),
    MCG(),
    MCG(projection="hard", gradient="squared", weight=0.1, form="predictor_corrector"),
    DAPS(),
    DAPS(estimate="ode", inner="hmc", inner_steps=20),
    PnPULA(steps=10, kernel="skrock"),
    PSLD(gluing="pseudo_inverse", fresh_noise=True),
    P2L(K=0, eta=0.5),
    ReSample(skip=3, travel=2),
]
STEPS = DDPM(steps=20)


def run(sampler, posterior, **kwargs):
    return sample(sampler, posterior, kwargs.pop("schedule", STEPS), progress=False, **kwargs)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_batch_equals_single_runs(sampler):
    posterior = problem_16(rows=8)
    together = run(sampler, posterior, n=2)
    for b in range(8):
        alone = run(sampler, posterior.select(torch.tensor([b])), n=2, ids=[b])
        assert torch.allclose(together[b], alone[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_permuting_a_batch_permutes_its_results(sampler):
    posterior, order = problem_16(rows=8), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    straight = run(sampler, posterior)
    permuted = run(sampler, posterior.select(order), ids=order.tolist())
    assert torch.allclose(permuted, straight[order], atol=1e-10, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_chunks_change_nothing(sampler):
    posterior = problem_16(rows=3)
    whole = run(sampler, posterior, n=4)
    chunked = run(sampler, posterior, n=4, memory_gb=1e-9)
    assert torch.allclose(whole, chunked, atol=1e-10, rtol=0)


def test_fewer_samples_are_the_first_of_many():
    posterior = problem_16(rows=2)
    assert torch.allclose(run(DPS(), posterior, n=5)[:, :2], run(DPS(), posterior, n=2), atol=1e-10, rtol=0)


def test_seed_id_and_sample_each_change_the_result_and_seed_zero_counts():
    posterior = problem_16()
    first = run(DPS(), posterior, n=2)
    assert not torch.allclose(first[0, 0], first[0, 1])
    assert not torch.allclose(first, run(DPS(), posterior, n=2, seed=1))
    assert not torch.allclose(first, run(DPS(), posterior, n=2, ids=["0"]))
    torch.manual_seed(99)
    assert torch.equal(first, run(DPS(), posterior, n=2, seed=0))


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    run(DPS(), problem_16(), n=2)
    assert torch.equal(before, torch.random.get_rng_state())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("stop_at", [7, 27])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(sampler, stop_at, tmp_path):
    posterior = problem_16(rows=2)
    # One row a chunk, so that the second stop falls into a later chunk.
    options = {"n": 2, "memory_gb": 1e-9}
    expected = run(sampler, posterior, **options)
    seen = []

    def stop(event):
        seen.append(event.index)
        if len(seen) == stop_at:
            raise Interrupted

    file = tmp_path / "half.pt"
    with pytest.raises(Interrupted):
        run(sampler, posterior, observe=stop, checkpoint=file, checkpoint_every=3, **options)
    resumed = []
    result = run(sampler, posterior, observe=lambda e: resumed.append(e.index), checkpoint=file, checkpoint_every=3, **options)
    assert torch.equal(result, expected)
    steps = len(sampler.plan(STEPS)) if hasattr(sampler, "plan") else 20
    assert len(resumed) == 4 * steps - (stop_at - 1) // steps * steps - (stop_at - 1) % steps // 3 * 3, (
        "finished steps must not be done again"
    )
    again = []
    assert torch.equal(run(sampler, posterior, observe=lambda e: again.append(e), checkpoint=file, n=2), expected)
    assert not again


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    posterior, file = problem_16(), tmp_path / "run.pt"
    run(DPS(), posterior, checkpoint=file)
    kept = file.read_bytes()
    for change in ({"seed": 1}, {"ids": [5]}, {"schedule": DDPM(steps=21)}, {"n": 2}):
        with pytest.raises(ValueError, match="belongs to another run"):
            run(DPS(), posterior, checkpoint=file, **change)
    with pytest.raises(ValueError, match="sampler differ"):
        run(DPS(zeta=0.5), posterior, checkpoint=file)
    other = Posterior(posterior.prior, GaussianLikelihood(posterior.likelihood.operator, posterior.likelihood.y + 1, 0.2))
    with pytest.raises(ValueError, match="measurement differ"):
        run(DPS(), other, checkpoint=file)
    likelihood, prior = posterior.likelihood, posterior.prior
    louder = GaussianLikelihood(likelihood.operator, likelihood.y, 0.3)
    elsewhere = GaussianLikelihood(Matrix(likelihood.operator.matrix + 0.1, (1, 4, 4)), likelihood.y, 0.2)
    for other in (louder, elsewhere):
        with pytest.raises(ValueError, match="measurement differ"):
            run(DPS(), Posterior(prior, other), checkpoint=file)
    with pytest.raises(ValueError, match="prior differ"):
        run(DPS(), Posterior(GaussianPrior(prior.mean, 2 * prior.cov), likelihood), checkpoint=file)
    assert file.read_bytes() == kept
    (tmp_path / "broken.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is not a checkpoint that can be read"):
        run(DPS(), posterior, checkpoint=tmp_path / "broken.pt")


class Held(PixelPrior):
    """A prior around arrays of numpy, which has the checksum of a file and no network."""

    image_shape, weights_sha256 = (1, 4, 4), "0" * 64

    def __init__(self):
        self.gain = np.full((4, 4), 0.5)

    def denoise(self, x, t):
        return x * torch.from_numpy(self.gain) / (t.alpha + t.sigma)


class Buffered(torch.nn.Module):
    """A network with weights of every kind: parameters, buffers in no state_dict, and bare tensors of a part of it."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv2d(1, 1, 1).double()
        torch.nn.init.constant_(self.inner.weight, 0.5)
        self.register_buffer("table", torch.ones(4, 4, dtype=torch.float64), persistent=False)
        self.inner.bare = torch.ones(4, dtype=torch.float64)

    def forward(self, x, time):
        return torch.tanh(self.inner(x) * self.table * self.inner.bare)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("where", ["weight", "table", "bare", "latent", "codec", "gain", "covariance"])
def test_weights_that_were_changed_in_place_do_not_take_up_a_checkpoint(where, known, tmp_path):
    """Whatever holds them, and also where the prior says from which file they came."""
    posterior, file = problem_16(), tmp_path / "run.pt"
    table, network = TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)), Buffered()
    codec = LinearAutoencoder(torch.eye(16, dtype=torch.float64), (1, 4, 4), (1, 4, 4))
    pixels = NetworkPrior(network, table, "sample", channels=1)
    priors = {"gain": Held(), "covariance": posterior.prior, "latent": LatentPrior(pixels, codec), "codec": LatentPrior(pixels, codec)}
    prior = priors.get(where, pixels)
    pixels.weights_sha256 = prior.weights_sha256 = "0" * 64 if known else ""
    changed = {"weight": network.inner.weight, "latent": network.inner.weight, "table": network.table, "bare": network.inner.bare}
    changed |= {"codec": codec.W, "covariance": posterior.prior._vectors}
    target = Posterior(prior, posterior.likelihood)
    expected = run(DPS(zeta=0.1), target, checkpoint=file)
    assert torch.equal(run(DPS(zeta=0.1), target, checkpoint=file), expected)
    if where == "gain":
        prior.gain *= 0.5
    else:
        with torch.no_grad():
            changed[where].mul_(0.5)
    with pytest.raises(ValueError, match="belongs to another run: prior differ"):
        run(DPS(zeta=0.1), target, checkpoint=file)


def test_exact_posterior_of_several_measurements_runs_row_by_row():
    exact = problem_16(rows=3).exact()
    together = run(Unconditional(), exact, n=2)
    assert together.shape == (3, 2, 1, 4, 4)
    for b in range(3):
        alone = run(Unconditional(), exact.select(torch.tensor([b])), n=2, ids=[b])
        assert torch.allclose(together[b], alone[0], atol=1e-10, rtol=0)


def test_mixture_rows_do_not_mix():
    posterior = problem_mixture()
    both = Posterior(
        posterior.prior, GaussianLikelihood(posterior.likelihood.operator, torch.tensor([[0.1], [-0.4]], dtype=torch.float64), 0.3)
    )
    together = run(DPS(zeta=0.05, variant="squared"), both)
    for b in range(2):
        assert torch.allclose(
            together[b], run(DPS(zeta=0.05, variant="squared"), both.select(torch.tensor([b])), ids=[b])[0], atol=1e-10, rtol=0
        )


@pytest.mark.slow
@pytest.mark.skipif(not resource("data", "priors", "photo", "unet").is_dir(), reason="the photo prior is not in this checkout")
def test_the_photo_prior_in_float32():
    from invsolve import load_prior
    from operators import Inpainting

    prior = load_prior("photo", device="cpu")
    operator = Inpainting(image_shape=(3, 32, 32), kind="box", size=12, seed=0)
    photo = torch.from_numpy(np.array(Image.open(resource("data", "photos", "chelsea.png")))).permute(2, 0, 1) / 127.5 - 1
    truth = torch.stack([photo[:, 30 * k : 30 * k + 32, 40 * k : 40 * k + 32] for k in range(8)])
    posterior = Posterior(prior, GaussianLikelihood(operator, operator.measure(truth, 0.05), 0.05))
    schedule, sampler = DDPM(steps=30), DPS(zeta=1.0)
    together = run(sampler, posterior, schedule=schedule)
    for b in range(8):
        alone = run(sampler, posterior.select(torch.tensor([b])), schedule=schedule, ids=[b])
        assert torch.allclose(together[b], alone[0], atol=1e-4, rtol=0)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    permuted = run(sampler, posterior.select(order), schedule=schedule, ids=order.tolist())
    assert torch.allclose(permuted, together[order], atol=1e-4, rtol=0)
    chunked = run(sampler, posterior, schedule=schedule, memory_gb=0.05)
    assert torch.allclose(chunked, together, atol=1e-4, rtol=0)
