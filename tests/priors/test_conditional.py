"""Conditional priors: guidance, embeddings of single rows, gradients in the embedding, and the Gaussian closed forms."""

import math

import pytest
import torch
from problems import DOUBLE, randn

from invsolve import sample
from invsolve.kernels.linearize import linearize
from invsolve.levels import CLEAN, Level
from invsolve.priors import (
    ConditionalGaussianPrior,
    ConditionalNetworkPrior,
    GaussianPrior,
    LatentPrior,
    LinearAutoencoder,
    NetworkPrior,
    TrainingTable,
)
from invsolve.samplers import Unconditional
from invsolve.schedules import DDPM, alpha_bars

SHAPE, E = (2, 2, 2), (3, 4)
TABLES = {
    "epsilon": TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)),
    "v_prediction": TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)),
    "sample": TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)),
    "flow": TrainingTable.flow(),
}
NULL = randn(*E, seed=1)
LEVELS = [Level(1.0, 0.05), Level(0.8, 0.6), Level(0.5, 0.5), Level(1.0, 30.0)]


class Network(torch.nn.Module):
    """Some smooth function of image, time and condition, with what a call was given on record."""

    def __init__(self, learned=False):
        super().__init__()
        self.mix = torch.nn.Parameter(randn(12, 8, seed=2) / 4)
        self.learned, self.seen = learned, []

    def forward(self, x, time, c):
        self.seen.append(tuple(c.shape))
        shift = torch.tanh(c.flatten(1) @ self.mix + time[:, None] / 1000).reshape(x.shape)
        out = torch.sin(x + shift) + 0.3 * shift * x
        return torch.cat([out, out + 1], 1) if self.learned else out


def network_prior(prediction="epsilon", guidance=1.0, **options):
    learned = options.pop("learned", False)
    return ConditionalNetworkPrior(
        Network(learned), TABLES[prediction], prediction, null=NULL, guidance=guidance, channels=SHAPE[0], **options
    )


def plain(prediction, c):
    """The network with the condition bound to it, as an ordinary prior."""
    return NetworkPrior(Network(), TABLES[prediction], prediction, channels=2, call=lambda net, x, time: net(x, time, c))


def calls(prior):
    return prior.calls.forward, prior.calls.backward


# -- networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", TABLES)
def test_guidance_extrapolates_the_networks_output(prediction):
    x, c = randn(3, *SHAPE, seed=3), randn(*E, seed=4)
    for t in LEVELS:
        free = plain(prediction, NULL.expand(3, *E)).denoise(x, t)
        given = plain(prediction, c.expand(3, *E)).denoise(x, t)
        assert not torch.allclose(free, given, atol=1e-3)
        for w in (0.0, 0.5, 1.0, 7.5):
            found = network_prior(prediction, w).conditioned(c).denoise(x, t)
            # Affine in the output, so in x_0 too: rounding of the output is magnified by sigma/alpha.
            assert torch.allclose(found, free + w * (given - free), atol=1e-12 * (1 + t.ratio), rtol=0)


@pytest.mark.parametrize(("guidance", "conditioned", "cost"), [(1, True, 1), (0, True, 1), (3, True, 2), (3, False, 1)])
def test_what_guidance_costs(guidance, conditioned, cost):
    prior = network_prior(guidance=guidance)
    used = prior.conditioned(randn(*E, seed=4)) if conditioned else prior
    x, t = randn(2, *SHAPE, seed=3), LEVELS[1]
    used.denoise(x, t)
    assert calls(prior) == (cost, 0) and used.calls is prior.calls and used.network is prior.network
    linearize(used, x, t).pull(x)
    assert calls(prior) == (2 * cost, cost)
    assert prior.network.seen == [(2, *E)] * 2 * cost


def test_unconditioned_it_is_the_null_prior():
    x, t = randn(2, *SHAPE, seed=3), LEVELS[1]
    expected = plain("epsilon", NULL.expand(2, *E)).denoise(x, t)
    for prior in (network_prior(), network_prior(guidance=5.0), network_prior(guidance=5.0).conditioned(NULL)):
        assert torch.allclose(prior.denoise(x, t), expected, atol=1e-14)
    assert network_prior().rows is None and network_prior().embedding is None


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_embeddings_of_single_rows(guidance):
    prior, t = network_prior(guidance=guidance), LEVELS[2]
    x, c = randn(4, *SHAPE, seed=3), randn(4, *E, seed=4)
    together = prior.conditioned(c)
    out = together.denoise(x, t)
    for b in range(4):
        assert torch.allclose(out[b], prior.conditioned(c[b]).denoise(x[b : b + 1], t)[0], atol=1e-14)
    index = torch.tensor([2, 0, 2])
    assert torch.equal(together.select(index).denoise(x[index], t), out[index])
    shared = prior.conditioned(c[0])
    assert together.rows == 4 and shared.rows is None and shared.select(index) is shared
    with pytest.raises(ValueError, match="4 embeddings for 3 rows"):
        together.denoise(x[:3], t)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_gradient_in_the_embedding(guidance):
    prior, t = network_prior("v_prediction", guidance), LEVELS[1]
    x, c = randn(2, *SHAPE, seed=3), randn(2, *E, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: prior.conditioned(c).denoise(x, t), (c,))
    before = calls(prior)[1]
    (grad,) = torch.autograd.grad(prior.conditioned(c).denoise(x, t).square().sum(), c)
    # The null call does not depend on the embedding.
    assert calls(prior)[1] == before + 1 and grad.shape == c.shape
    one = c.detach()[:1].clone().requires_grad_()
    (alone,) = torch.autograd.grad(prior.conditioned(one).denoise(x[:1], t).square().sum(), one)
    assert torch.allclose(grad[:1], alone, atol=1e-13)


def test_the_learned_variance_is_that_of_the_conditional_call():
    prior, t = network_prior(guidance=4.0, learned=True).conditioned(randn(*E, seed=4)), LEVELS[1]
    x = randn(2, *SHAPE, seed=3)
    _, fraction = prior.denoise_with_variance(x, t)
    prior.guidance = 1.0
    assert torch.equal(fraction, prior.denoise_with_variance(x, t)[1])


def test_an_embedding_from_inference_mode_can_be_used_under_autograd():
    with torch.inference_mode():
        prior = network_prior().conditioned(torch.ones(E, dtype=DOUBLE))
    assert float(linearize(prior, randn(1, *SHAPE), LEVELS[1]).pull(randn(1, *SHAPE)).abs().max()) > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: network_prior(guidance=-1.0), ValueError, "guidance=-1.0; a number that is at least 0"),
        (lambda: network_prior(guidance=math.nan), ValueError, "guidance=nan"),
        (lambda: network_prior().conditioned(torch.zeros(3)), ValueError, r"embedding of shape \(3,\); \(3, 4\), or one such for each row"),
        (lambda: network_prior().conditioned(torch.zeros(2, 2, *E)), ValueError, r"embedding of shape \(2, 2, 3, 4\)"),
        (lambda: network_prior().embed("a ring"), TypeError, "no embedder"),
    ],
)
def test_what_makes_no_sense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# -- the loop -------------------------------------------------------------------------------------------------------------


def gaussian_prior(guidance=1.0, null=None):
    root = randn(4, 4, seed=5)
    cov = root @ root.mT / 4 + 0.05 * torch.eye(4, dtype=DOUBLE)
    return ConditionalGaussianPrior(0.5 * randn(1, 2, 2, seed=6), randn(4, 2, seed=7), cov, null, guidance)


def test_a_sampler_gives_every_image_its_own_embedding():
    codec = LinearAutoencoder(torch.linalg.qr(randn(6, 4, seed=8))[0], (1, 2, 3), (1, 2, 2))
    prior, c = LatentPrior(gaussian_prior(), codec), randn(3, 2, seed=9)
    draw = lambda prior, **options: sample(Unconditional(), prior, DDPM(steps=10), progress=False, shape=(1, 2, 3), **options)  # noqa: E731
    together = draw(prior.conditioned(c), n=2)
    assert together.shape == (3, 2, 1, 2, 3)
    for b in range(3):
        assert torch.allclose(together[b], draw(prior.conditioned(c[b]), n=2, ids=[b])[0], atol=1e-12)
    with pytest.raises(ValueError, match="2 ids for 3 measurements"):
        draw(prior.conditioned(c), ids=["a", "b"])


# -- Gaussians ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_conditional_gaussian_is_the_gaussian_of_its_condition(guidance):
    null = randn(2, seed=1)
    prior, c = gaussian_prior(guidance, null), randn(3, 2, seed=9)
    x = randn(3, 1, 2, 2, seed=3)
    for t in (*LEVELS, CLEAN):
        free = prior.denoise(x, t)
        assert torch.allclose(free, GaussianPrior(prior._mean + (prior.B @ null).view(1, 2, 2), prior.cov).denoise(x, t), atol=1e-12)
        for b in range(3):
            mean = prior._mean + (prior.B @ c[b]).view(1, 2, 2)
            given = GaussianPrior(mean, prior.cov).denoise(x[b : b + 1], t)
            found = prior.conditioned(c).denoise(x, t)[b]
            assert torch.allclose(found, (free[b] + guidance * (given - free[b : b + 1]))[0], atol=1e-11)
            assert torch.allclose(found, prior.conditioned(c).select(torch.tensor([b])).law().denoise(x[b : b + 1], t)[0], atol=1e-11)


def test_the_gradient_of_the_conditional_gaussian_in_its_condition():
    prior, x = gaussian_prior(), randn(1, 1, 2, 2, seed=3)
    for t in (*LEVELS, CLEAN):
        found = torch.func.jacrev(lambda c, t=t: prior.conditioned(c).denoise(x, t).flatten())(randn(2, seed=9))
        J = torch.func.jacrev(lambda x, t=t: prior.denoise(x, t).flatten())(x).reshape(4, 4)
        assert torch.allclose(found, (torch.eye(4, dtype=DOUBLE) - t.alpha * J) @ prior.B, atol=1e-12)
    assert float(found.abs().max()) < 1e-12  # at sigma = 0, where x is all there is to know


def test_what_a_measurement_says_about_the_condition():
    prior, G, y, sigma = gaussian_prior(), randn(3, 4, seed=2), randn(2, 3, seed=4), 0.3
    H, r = G @ prior.B, y - G @ prior._mean.flatten()
    S = G @ prior.cov @ G.mT + sigma**2 * torch.eye(3, dtype=DOUBLE)
    evidence = lambda c, b: torch.distributions.MultivariateNormal(H @ c, S).log_prob(r[b])  # noqa: E731
    most_likely = prior.condition_given(G, y, sigma)
    m, C = randn(2, seed=6), torch.diag(torch.tensor([0.5, 2.0], dtype=DOUBLE))
    given = prior.condition_given(G, y, sigma, m, C)
    belief = torch.distributions.MultivariateNormal(m, C)
    for b in range(2):
        # A maximum has no gradient, and its curvature is the precision.
        for law, log in ((most_likely, lambda c, b=b: evidence(c, b)), (given, lambda c, b=b: evidence(c, b) + belief.log_prob(c))):
            assert torch.allclose(torch.func.grad(log)(law.mean[b]), torch.zeros(2, dtype=DOUBLE), atol=1e-9)
            assert torch.allclose(-torch.func.hessian(log)(law.mean[b]), torch.linalg.inv(law.cov), atol=1e-8)
    fitted = prior.condition_given(G, y, sigma, marginal=False)
    assert torch.allclose(fitted.mean, torch.linalg.lstsq(H, r.mT).solution.mT, atol=1e-10)
    assert not torch.allclose(fitted.mean, most_likely.mean, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ConditionalGaussianPrior(torch.zeros(2), torch.zeros(3, 2), torch.eye(2)),
            r"B has shape \(3, 2\); \(2, d\) is needed for a mean of shape \(2,\)",
        ),
        (
            lambda: ConditionalGaussianPrior(torch.zeros(2), torch.zeros(2, 2), torch.eye(2), torch.zeros(3)),
            r"null has shape \(3,\); \(2,\) is needed",
        ),
        (lambda: gaussian_prior().conditioned(torch.zeros(3)), r"embedding of shape \(3,\)"),
        (lambda: gaussian_prior().embed([1.0, 2.0, 3.0]), r"embedding of shape \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
