"""Classical phase retrieval: error reduction, hybrid input-output, and the spectral start.

All work on every sample and every channel apart. Random starts are drawn from `generator(seed, id, ...)`, one stream per
sample, so that a batch gives what single runs give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from operators.core.fourier import fft2c, ifft2c
from operators.core.streams import generator
from operators.phase.retrieval import FourierMagnitude, Phaseless, whole


def magnitude_residual(op: Phaseless, x: Tensor, y: Tensor) -> Tensor:
    """|| |B u| - m || / ||m|| for each sample and channel, m the magnitudes of y: images (B, C, H, W) -> (B, C)."""
    m = op.magnitude(y)
    gap = op.field(op.to_object(x)).abs() - m
    return gap.flatten(2).norm(dim=2) / m.flatten(2).norm(dim=2).clamp_min(torch.finfo(m.dtype).tiny)


def error_reduction(
    op: FourierMagnitude,
    y: Tensor,
    steps: int = 200,
    start: Tensor | None = None,
    nonnegative: bool | None = None,
    seed: int = 0,
    ids: Sequence[int | str] | None = None,
) -> Tensor:
    """Error reduction: `steps` alternate projections on the magnitudes and on the support; images (B, C, H, W).

    From `start`, an image (B, C, H, W), or from a random object drawn for `seed` and `ids` (default 0..B-1). The support is
    the frame of the image; with `nonnegative` (default: where range="unit") the object is also kept >= 0. The magnitude
    residual never increases. y (B, *measurement_shape) may be noisy.

    Source: Fienup, "Phase retrieval algorithms: a comparison", Appl. Opt. 21 (1982), Sec. IV; Gerchberg and Saxton (1972).
    Raises TypeError for another operator; ValueError for wrong shapes or steps < 0.
    """
    m, positive = _magnitudes(op, y), _positive(op, nonnegative)
    if start is None:
        u = _random_objects(op, y, 1, "error reduction", seed, ids)[0]
    else:
        op._expect(start, op.image_shape, "start")
        u = op.to_object(start)
    return op.to_image(_reduce(op, u, m, whole(steps, 0, "steps"), positive))


def hybrid_input_output(
    op: FourierMagnitude,
    y: Tensor,
    steps: int = 500,
    beta: float = 0.9,
    finish: int = 50,
    restarts: int = 4,
    nonnegative: bool | None = None,
    seed: int = 0,
    ids: Sequence[int | str] | None = None,
) -> Tensor:
    """Hybrid input-output from `restarts` random objects, each ended by error reduction; images (B, C, H, W).

    Where the object projected on the magnitudes, g', satisfies the constraints (inside the frame, and >= 0 if `nonnegative`,
    the default where range="unit") the next input is g'; elsewhere it is g - beta g'. After `steps` of these, `finish` steps of
    error reduction. Of the restarts the one with the smallest magnitude residual is returned, for every sample and channel.

    Source: Fienup, "Phase retrieval algorithms: a comparison", Appl. Opt. 21 (1982), Sec. V, equation 44.
    Raises TypeError for another operator; ValueError for wrong shapes, steps or finish < 0, restarts < 1, or beta outside (0, 2).
    """
    m, positive = _magnitudes(op, y), _positive(op, nonnegative)
    if not 0 < beta < 2:
        raise ValueError(f"beta must lie in (0, 2), got {beta!r}")
    starts = _random_objects(op, y, whole(restarts, 1, "restarts"), "hybrid input-output", seed, ids)
    whole(steps, 0, "steps")
    whole(finish, 0, "finish")
    inside = op.padded(torch.ones_like(starts[0, :1])) > 0
    # Restarts are one more leading axis, so that all run in the same transforms.
    g = op.padded(starts)
    for _ in range(steps):
        projected = _project(g, m)
        keep = inside & (projected >= 0) if positive else inside
        g = torch.where(keep, projected, g - beta * projected)
    u = _reduce(op, op.cropped(g), m, finish, positive)
    residual = torch.stack([magnitude_residual(op, op.to_image(one), y) for one in u])
    best = residual.argmin(0)[None, :, :, None, None].expand(1, *u.shape[1:])
    return op.to_image(u.gather(0, best)[0])


def spectral_start(op: Phaseless, y: Tensor, steps: int = 200, seed: int = 0, ids: Sequence[int | str] | None = None) -> Tensor:
    """Spectral estimate of the image (B, C, H, W) from y: the leading eigenvector of Re B^H diag(T(y)) B, for each channel.

    T(y) = max(1 - 1/y, -5) with intensities y of mean 1; `steps` of power iteration, shifted so that the eigenvalue found is
    the largest and not the most negative. The length is the one that fits the magnitudes best, the sign the one with a
    positive mean. For random B it tends to the truth as measurements grow; for a bare Fourier transform it tells nothing.

    Source: Mondelli and Montanari, "Fundamental limits of weak recovery", 2019; Luo, Alghamdi, Lu, "Optimal spectral
    initialization for signal recovery with applications to phase retrieval", 2019. deepinv's `spectral_methods` has the same
    weights, but one norm for the whole batch, starts from the global generator, and complex results for real images.
    Raises TypeError for an operator that is not `Phaseless`; ValueError for a wrong shape or steps < 1.
    """
    if not isinstance(op, Phaseless):
        raise TypeError(f"the spectral start needs a Phaseless operator, got {type(op).__name__}")
    op._expect(y, op.measurement_shape, "y")
    m = op.magnitude(y)
    intensity = m.square()
    tiny = torch.finfo(m.dtype).tiny
    mean = intensity.flatten(2).mean(2).clamp_min(tiny).reshape(*m.shape[:2], *[1] * (m.ndim - 2))
    weight = (1 - mean / intensity.clamp_min(tiny)).clamp_min(-5.0)
    v = _random_objects(op, y, 1, "spectral start", seed, ids)[0]
    # Weights are at least -5, so a shift of 5 ||B||^2 makes every eigenvalue positive.
    squared_norm, _ = _power(lambda u: op.field_adjoint(op.field(u)), v, 20)
    shift = 5 * squared_norm
    _, v = _power(lambda u: op.field_adjoint(weight * op.field(u)) + shift * u, v, whole(steps, 1, "steps"))
    v = torch.where(v.mean((-2, -1), keepdim=True) < 0, -v, v)
    a = op.field(v).abs()
    scale = (a * m).flatten(2).sum(2) / a.square().flatten(2).sum(2).clamp_min(tiny)
    return op.to_image(scale[..., None, None] * v)


def _power(apply: Callable[[Tensor], Tensor], v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (B, C, 1, 1), of a positive map on each channel, and its unit vector, by power iteration from v."""
    length = v
    for _ in range(steps):
        v = apply(v)
        length = v.flatten(2).norm(dim=2)[..., None, None].clamp_min(torch.finfo(v.dtype).tiny)
        v = v / length
    return length, v


def _magnitudes(op: FourierMagnitude, y: Tensor) -> Tensor:
    if not isinstance(op, FourierMagnitude):
        raise TypeError(f"this algorithm needs FourierMagnitude, whose support is the frame of the image; got {type(op).__name__}")
    op._expect(y, op.measurement_shape, "y")
    return op.magnitude(y)


def _positive(op: Phaseless, nonnegative: bool | None) -> bool:
    return op.range == "unit" if nonnegative is None else nonnegative


def _random_objects(op: Phaseless, y: Tensor, count: int, name: str, seed: int, ids: Sequence[int | str] | None) -> Tensor:
    """Uniform objects over the range of op's, (count, B, C, H, W); ValueError unless there is one id per sample."""
    names = list(range(y.shape[0])) if ids is None else list(ids)
    if len(names) != y.shape[0]:
        raise ValueError(f"ids must name each of the {y.shape[0]} samples, got {len(names)}: {names}")
    shape = (count, *op.image_shape)
    drawn = [torch.rand(shape, generator=generator(seed, id, name), dtype=torch.float64) for id in names]
    uniform = torch.stack(drawn, dim=1).to(y)
    return uniform if op.range == "unit" else 2 * uniform - 1


def _project(canvas: Tensor, m: Tensor) -> Tensor:
    """The real canvas whose spectrum has the magnitudes m and the phases of `canvas`."""
    # Noise makes m unequal at k and -k; taking the real part averages the two, which is the projection on real canvases.
    return ifft2c(torch.polar(m.expand(canvas.shape), fft2c(canvas).angle())).real


def _reduce(op: FourierMagnitude, u: Tensor, m: Tensor, steps: int, positive: bool) -> Tensor:
    for _ in range(steps):
        u = op.cropped(_project(op.padded(u), m))
        u = u.clamp(min=0) if positive else u
    return u
