"""Latent priors: the likelihood behind the decoder, the exact posterior, and samplers for images run on codes."""

import pytest
import torch

from invsolve import Posterior, sample
from invsolve.levels import Level
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.pulled_back import PulledBack
from invsolve.priors import (
    ConditionalGaussianPrior,
    GaussianMixturePrior,
    GaussianPrior,
    LatentPrior,
    LinearAutoencoder,
    NetworkPrior,
    TrainingTable,
)
from invsolve.samplers import DAPS, DPS, P2L, PSLD, PnPULA, ReSample, Unconditional
from invsolve.schedules import DDPM, Karras, alpha_bars
from operators import Inpainting, Matrix

SHAPE, CODE = (1, 2, 3), (2,)
SIGMA = 0.3


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W = torch.linalg.qr(numbers(6, 2))[0]
OFFSET = numbers(*SHAPE, seed=5)
LINEAR = LinearAutoencoder(W, SHAPE, CODE, offset=OFFSET)
COV = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
GAUSSIAN = GaussianPrior(torch.tensor([0.5, -1.0], dtype=torch.float64), COV)
MIXTURE = GaussianMixturePrior([0.3, 0.7], torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=torch.float64), torch.stack([COV, 0.2 * COV]))
A = Matrix(numbers(4, 6, seed=2), SHAPE)
Y = A.A(LINEAR.decode(numbers(2, 2, seed=3)))


def posterior(prior=GAUSSIAN, rows=2):
    return Posterior(LatentPrior(prior, LINEAR), GaussianLikelihood(A, Y[:rows], SIGMA))


def test_linear_autoencoder():
    z = numbers(3, 2, seed=4)
    x = LINEAR.decode(z)
    assert x.shape == (3, *SHAPE)
    torch.testing.assert_close(x, (z @ W.mT).reshape(3, *SHAPE) + OFFSET)
    torch.testing.assert_close(LINEAR.encode(x), z)
    other = LinearAutoencoder(W, SHAPE, CODE, encoder=2 * W.mT)
    torch.testing.assert_close(other.encode(other.decode(z)), 2 * z)


@pytest.mark.parametrize("prior", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_exact_posterior_by_bayes_rule(prior):
    exact = posterior(prior).exact_of_code()
    grid = numbers(50, 2, seed=6)
    for row in range(2):
        log_joint = prior.log_prob(grid) + GaussianLikelihood(A, Y[row : row + 1], SIGMA).log_prob(LINEAR.decode(grid))
        chosen = exact.select(torch.tensor([row]))
        difference = log_joint - chosen.log_prob(grid)
        torch.testing.assert_close(difference, difference[:1].expand(50), rtol=0, atol=1e-9)
    images = posterior(prior).exact()
    torch.testing.assert_close(images.mean, LINEAR.decode(exact.mean))
    torch.testing.assert_close(images.cov, W @ exact.cov @ W.mT)


@pytest.mark.parametrize("sampler", [DPS(), DPS(variant="squared", zeta=0.1), DAPS(inner_steps=5), PnPULA(steps=20, burn_in=0.5)])
def test_samplers_run_on_codes_as_on_the_pulled_back_problem(sampler):
    schedule = Karras(6, 3.0, 0.05) if isinstance(sampler, DAPS) else DDPM(steps=20)
    drawn = sample(sampler, posterior(), schedule, n=2, progress=False)
    assert drawn.shape == (2, 2, *SHAPE)
    by_hand = PulledBack(GaussianLikelihood(A, Y, SIGMA), LINEAR.decode)
    codes = sample(sampler, Posterior(GAUSSIAN, by_hand), schedule, n=2, shape=CODE, progress=False)
    torch.testing.assert_close(drawn, LINEAR.decode(codes.flatten(0, 1)).unflatten(0, (2, 2)), rtol=1e-10, atol=1e-12)


def test_latent_dps_is_dps_on_the_operator_behind_the_decoder():
    behind = Matrix(A.matrix @ W, CODE)
    y = Y - A.A(OFFSET[None])
    codes = sample(DPS(), Posterior(GAUSSIAN, GaussianLikelihood(behind, y, SIGMA)), DDPM(steps=20), progress=False)
    images = sample(DPS(), posterior(), DDPM(steps=20), progress=False)
    torch.testing.assert_close(images[:, 0], LINEAR.decode(codes[:, 0]), rtol=1e-8, atol=1e-10)


def test_unconditional_draws_are_decoded():
    prior = LatentPrior(GAUSSIAN, LINEAR)
    x = sample(Unconditional(), prior, DDPM(steps=5), n=3, shape=SHAPE, progress=False)
    assert x.shape == (1, 3, *SHAPE) and x.dtype == torch.float64
    z = sample(Unconditional(), GAUSSIAN, DDPM(steps=5), n=3, progress=False)
    torch.testing.assert_close(x, LINEAR.decode(z[0])[None])


def test_chunks_and_resumption(tmp_path):
    once = sample(DPS(), posterior(), DDPM(steps=10), n=3, progress=False)
    chunked = sample(DPS(), posterior(), DDPM(steps=10), n=3, progress=False, checkpoint=tmp_path / "a.pt")
    again = sample(DPS(), posterior(), DDPM(steps=10), n=3, progress=False, checkpoint=tmp_path / "a.pt")
    torch.testing.assert_close(once, chunked, rtol=0, atol=1e-12)
    assert torch.equal(chunked, again)
    with pytest.raises(ValueError, match="another run: measurement"):
        other = Posterior(LatentPrior(GAUSSIAN, LINEAR), GaussianLikelihood(A, Y + 1, SIGMA))
        sample(DPS(), other, DDPM(steps=10), n=3, progress=False, checkpoint=tmp_path / "a.pt")


class Scaled:
    """An autoencoder of somebody's own."""

    def __init__(self, scale):
        self.scale = scale

    def encode(self, x):
        return x / self.scale

    def decode(self, z):
        return self.scale * z

    def latent_shape(self, image_shape):
        return tuple(image_shape)


class Shrinks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, time):
        return self.factor * x


def test_another_autoencoder_is_another_run_also_where_the_checksum_of_the_network_is_known(tmp_path):
    table = TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000))
    network = NetworkPrior(Shrinks(), table, "sample", channels=1)
    network.weights_sha256 = "that of the network's file"
    likelihood = GaussianLikelihood(A, Y.float(), SIGMA)

    def draw(scale, **options):
        target = Posterior(LatentPrior(network, Scaled(scale)), likelihood)
        return sample(DPS(zeta=0.1), target, DDPM(steps=5), progress=False, **options)

    first = draw(1.0, checkpoint=tmp_path / "a.pt")
    assert torch.equal(draw(1.0, checkpoint=tmp_path / "a.pt"), first)
    assert not torch.allclose(draw(2.0), first, atol=1e-3)
    with pytest.raises(ValueError, match="another run: prior"):
        draw(2.0, checkpoint=tmp_path / "a.pt")


def test_prior_and_autoencoder_are_moved_together():
    moved = []

    class Moves(Scaled):
        def to(self, device):
            moved.append(device)

    network = NetworkPrior(Shrinks(), TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)), "sample")
    prior = LatentPrior(network, Moves(1.0))
    assert prior.to("meta") is prior and moved == ["meta"] and prior.device == torch.device("meta")
    assert LatentPrior(GAUSSIAN, LINEAR).to("cpu").denoise(numbers(1, 2), Level(1.0, 0.5)).shape == (1, 2)


def test_the_exact_posterior_in_single_precision_and_under_a_condition():
    single = LinearAutoencoder(W.float(), SHAPE, CODE, offset=OFFSET.float())
    mixed = Posterior(LatentPrior(GAUSSIAN, single), GaussianLikelihood(A, Y, SIGMA)).exact()
    assert mixed.mean.dtype == torch.float64
    torch.testing.assert_close(mixed.mean, posterior().exact().mean, rtol=0, atol=1e-5)
    conditional = ConditionalGaussianPrior(GAUSSIAN.mean, numbers(2, 3, seed=7), COV, guidance=2.0)
    c = numbers(3, seed=8)
    for prior, mean in ((conditional, GAUSSIAN.mean), (conditional.conditioned(c), GAUSSIAN.mean + 2 * conditional.B @ c)):
        expected = posterior(GaussianPrior(mean, COV)).exact()
        torch.testing.assert_close(posterior(prior).exact().mean, expected.mean)
        torch.testing.assert_close(posterior(prior).exact().cov, expected.cov)
    with pytest.raises(TypeError, match="one prior for all rows"):
        posterior(conditional.conditioned(numbers(2, 3, seed=9))).exact()


def test_counts_encodings_and_decodings():
    prior = LatentPrior(GAUSSIAN, LINEAR)
    prior.encode(prior.decode(numbers(1, 2)))
    prior.select(torch.tensor([0])).decode(numbers(1, 2))
    assert (prior.calls.encode, prior.calls.decode) == (1, 2)


def test_refusals():
    with pytest.raises(ValueError, match=r"W has shape \(6, 2\); \(6, 3\)"):
        LinearAutoencoder(W, SHAPE, (3,))
    with pytest.raises(ValueError, match="encoder has shape"):
        LinearAutoencoder(W, SHAPE, CODE, encoder=W)
    prior = LatentPrior(GAUSSIAN, LINEAR)
    with pytest.raises(ValueError, match=r"images of shape \(1, 2, 3\), not \(1, 3, 3\)"):
        prior.image_shape_ok((1, 3, 3))
    with pytest.raises(TypeError, match="GaussianPrior, which takes no prompt"):
        prior.embed("a")
    with pytest.raises(TypeError, match="GaussianPrior, which takes no prompt"):
        _ = prior.guidance
    each = Inpainting(SHAPE, kind="random", fraction=0.5, seed=0, per_image=True).for_ids([0, 1])
    with pytest.raises(TypeError, match="one operator for all rows"):
        Posterior(prior, GaussianLikelihood(each, each.A(LINEAR.decode(numbers(2, 2))), SIGMA)).exact()
    with pytest.raises(ValueError, match=r"clamping x0_hat to \[-1, 1\] is for images"):
        sample(DPS(variant="official", variance="posterior"), posterior(), DDPM(steps=5), progress=False)
    # The decoder of the likelihood is none of a prior over what looks like images.
    by_hand = Posterior(GAUSSIAN, PulledBack(GaussianLikelihood(A, Y, SIGMA), LINEAR.decode))
    for sampler in (ReSample(), PSLD(), P2L(K=0)):
        with pytest.raises(TypeError, match=r"pass LatentPrior\(prior, autoencoder\) and the likelihood of images"):
            sample(sampler, by_hand, DDPM(steps=5), shape=CODE, progress=False)
    with pytest.raises(TypeError, match="LinearAutoencoder"):
        Posterior(GAUSSIAN, posterior().likelihood).exact_of_code()
    assert prior.denoise(numbers(1, 2), Level(1.0, 0.5)).shape == (1, 2)
