"""The posterior p(x | y) of a prior and a likelihood, and its closed form where there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.pulled_back import PulledBack
from invsolve.priors.base import Prior
from invsolve.priors.gaussian import GaussianMixturePrior, GaussianPrior, StationaryGaussianPrior
from invsolve.priors.gaussian_conditional import ConditionalGaussianPrior
from invsolve.priors.latent import LatentPrior, LinearAutoencoder
from operators import Matrix
from operators.core.dense import _real, matrix_of


def _one_for_all_rows(operator: Any) -> None:
    if operator.select(torch.tensor([0])) is not operator:
        raise TypeError("exact() needs one operator for all rows; this one differs from row to row")


@dataclass(frozen=True)
class Posterior:
    """p(x | y) proportional to prior(x) * likelihood(y | x); without a likelihood, the prior itself."""

    prior: Prior
    likelihood: Any = None

    def select(self, index: Tensor) -> Posterior:
        """The posterior of the given rows of y (and of the prior, where it differs from row to row)."""
        choose = getattr(self.prior, "select", None)
        prior = choose(index) if choose else self.prior
        return replace(self, prior=prior, likelihood=self.likelihood.select(index) if self.likelihood is not None else None)

    def in_prior_space(self) -> Posterior:
        """The posterior of what the prior is over: with a latent prior, the likelihood pulled back through the decoder."""
        if not isinstance(self.prior, LatentPrior) or self.likelihood is None or isinstance(self.likelihood, PulledBack):
            return self
        return replace(self, likelihood=PulledBack(self.likelihood, self.prior.decode))

    def exact(self) -> GaussianPrior | GaussianMixturePrior:
        """The exact posterior under a Gaussian or mixture prior and a linear Gaussian likelihood.

        It is again a Gaussian (mixture), with `.mean`, `.cov`, `.draw(n, seed)`, `.weights`, `.means`, `.covs`, and it is
        itself a prior whose denoiser is that of the posterior. Means and weights have a row for each row of y. Computed in
        the dtype of the prior (float64 is meant). With a latent prior behind a `LinearAutoencoder` it is the distribution of
        the image decode(z), with a conditional Gaussian prior that under its present condition. Raises TypeError for any other
        posterior and ValueError if sigma = 0.
        """
        if isinstance(self.prior, LatentPrior):
            return self._exact_of_images()
        prior, likelihood = self.prior, self.likelihood
        if isinstance(prior, StationaryGaussianPrior):
            prior = prior.dense()
        if isinstance(prior, ConditionalGaussianPrior):
            prior = prior.law()
        if not isinstance(prior, GaussianMixturePrior):
            raise TypeError(f"exact() needs a Gaussian or a Gaussian mixture prior, not {type(prior).__name__}")
        if not isinstance(likelihood, GaussianLikelihood) or not likelihood.operator.linear:
            raise TypeError("exact() needs a Gaussian likelihood with a linear operator")
        if likelihood.sigma == 0:
            raise ValueError("exact() divides by sigma^2, but sigma = 0")
        if prior._per_row:
            raise TypeError("exact() needs one prior for all rows; this one differs from row to row")
        _one_for_all_rows(likelihood.operator)
        means, covs = prior._means[0], prior.covs
        shape = prior.image_shape or ()
        n = means.shape[1]
        A = matrix_of(likelihood.operator, shape, means)
        y = _real(likelihood.y).to(means).flatten(1)
        identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
        S = A @ covs @ A.mT + likelihood.sigma**2 * identity
        root = torch.linalg.cholesky(S)
        gain = torch.cholesky_solve(A @ covs, root).mT
        innovation = y[:, None] - means @ A.mT
        posterior_means = means + torch.einsum("kij,bkj->bki", gain, innovation)
        # Joseph's form: symmetric and positive semi-definite whatever the rounding.
        keep = torch.eye(n, dtype=A.dtype, device=A.device) - gain @ A
        posterior_covs = keep @ covs @ keep.mT + likelihood.sigma**2 * gain @ gain.mT
        posterior_covs = (posterior_covs + posterior_covs.mT) / 2
        if isinstance(prior, GaussianPrior):
            return GaussianPrior(posterior_means[:, 0].unflatten(-1, shape), posterior_covs[0], shape)
        white = torch.linalg.solve_triangular(root, innovation.permute(1, 2, 0), upper=False)
        log_evidence = -0.5 * white.square().sum(1).mT - torch.linalg.diagonal(root).log().sum(-1)
        weights = torch.softmax(prior._weights.log() + log_evidence, dim=1)
        return GaussianMixturePrior(weights, posterior_means.unflatten(-1, shape), posterior_covs, shape)

    def exact_of_code(self) -> GaussianPrior | GaussianMixturePrior:
        """As `exact`, of the code z of a latent prior behind a `LinearAutoencoder`. Raises TypeError for any other prior."""
        if not isinstance(self.prior, LatentPrior) or type(self.prior.autoencoder) is not LinearAutoencoder:
            raise TypeError("the exact posterior of a code needs a LatentPrior whose autoencoder is a LinearAutoencoder")
        if not isinstance(self.likelihood, GaussianLikelihood) or not self.likelihood.operator.linear:
            raise TypeError("exact() needs a Gaussian likelihood with a linear operator")
        linear, operator = self.prior.autoencoder, self.likelihood.operator
        _one_for_all_rows(operator)
        columns = _real(operator.A(linear.W.mT.unflatten(1, linear.image_shape))).flatten(1)
        constant = _real(operator.A(linear.offset.view(1, *linear.image_shape))).flatten(1)
        code_shape = linear.latent_shape(linear.image_shape)
        of_code = GaussianLikelihood(Matrix(columns.mT, code_shape), _real(self.likelihood.y).flatten(1) - constant, self.likelihood.sigma)
        return Posterior(self.prior.prior, of_code).exact()

    def _exact_of_images(self) -> GaussianPrior | GaussianMixturePrior:
        code = self.exact_of_code()
        linear: LinearAutoencoder = self.prior.autoencoder  # type: ignore[attr-defined]
        W = linear.W.to(code.covs)
        covs = W @ code.covs @ W.mT
        means = code._means @ W.mT + linear.offset.to(W)
        if isinstance(code, GaussianPrior):
            return GaussianPrior(means[:, 0].unflatten(-1, linear.image_shape), covs[0], linear.image_shape)
        return GaussianMixturePrior(code.weights, means.unflatten(-1, linear.image_shape), covs, linear.image_shape)
