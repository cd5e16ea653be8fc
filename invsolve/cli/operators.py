"""The commands that look at an operator alone: ``invsolve check`` and ``invsolve show-operator``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from invsolve.config.names import names
from invsolve.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from invsolve.config.model import Component

_CHECK_HELP = """\
examples:
  invsolve check operator=super_resolution operator.factor=2
  invsolve check operator=custom operator.target=mine.py:make operator.std=2 image_shape=[1,32,32]

keys: operator, operator.KEY, image_shape (default: the first of [3,64,64], [1,64,64] and [2,64,64] that the operator takes),
seed, device. Exit code 0 if all laws hold, 1 if not. operator=custom executes the code of the file that it names.
"""
_SHOW_HELP = """\
examples:
  invsolve show-operator operator=gaussian_blur image=photo.png out=blur.png
  invsolve show-operator operator=inpainting operator.kind=random noise.sigma=0.1 image=photo.png size=128 out=looks

keys: operator, operator.KEY, image, out (a .png file, or a folder), size (default 64; null for the whole image), noise,
noise.KEY, seed. The picture shows truth, measurement, adjoint and pseudo-inverse; an operator that is not linear has only the
first two. Operators of one channel are given the grey image, those of two (complex) have it as their real part, in [0, 1].
"""
# (command, one line of help, what is printed below it)
HELP = (
    ("check", "measure the laws that every operator obeys", _CHECK_HELP),
    ("show-operator", "write a picture of what an operator does", _SHOW_HELP),
)

_SIDE = 64
_CHANNELS = (3, 1, 2)
# Where the pseudo-inverse is iterative: closer to it there is only amplified noise to see, after minutes.
_INVERSE_TOL = 1e-2


@dataclass(frozen=True)
class CheckSettings:
    """What ``invsolve check`` needs beside the operator."""

    image_shape: tuple[int, ...] | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class ShowSettings:
    """What ``invsolve show-operator`` needs beside the operator and the noise."""

    image: str
    out: str
    size: int | tuple[int, int] | None = _SIDE
    seed: int = 0


class _Picture(NamedTuple):
    """One picture (C, H, W) in [-1, 1] with its title and what is said below; without one, only the words."""

    title: str
    caption: str
    content: Any = None


def check(overrides: Sequence[str]) -> int:
    """Prints the table of laws of the operator that the ``key=value`` overrides describe; 0 if all hold, else 1."""
    from invsolve.config.load import assemble

    sections, settings = assemble({}, _with_operator(overrides), ("operator",), CheckSettings, "the command line", "check")
    shapes = [(channels, _SIDE, _SIDE) for channels in _CHANNELS] if settings.image_shape is None else [settings.image_shape]
    operator = _build(sections["operator"], shapes)
    import torch

    import operators

    try:
        operator = operator.to(torch.device(settings.device))
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"device = {settings.device}: not available here") from error
    report = operators.report(operator, seed=settings.seed)
    print(report)
    return 0 if report.passed else 1


def show(overrides: Sequence[str], overwrite: bool = False) -> int:
    """Writes the picture of an operator that the ``key=value`` overrides describe; the exit code, 0."""
    from invsolve.atomic import refuse_existing, replacing
    from invsolve.config.load import assemble
    from invsolve.data.images import Images

    tree = {"noise": "gaussian"}
    sections, settings = assemble(tree, _with_operator(overrides), ("operator", "noise"), ShowSettings, "the command line", "show-operator")
    items = Images(root=settings.image, size=settings.size).items()
    if len(items) != 1:
        raise ConfigError(f"image = {settings.image}: {len(items)} images; name one")
    (item,) = items
    assert item.image_shape is not None
    out = Path(settings.out)
    out = out if out.suffix.lower() == ".png" else out / f"{item.id}_{sections['operator'].name}.png"
    refuse_existing(out, overwrite)
    operator = _build(sections["operator"], [(channels, *item.image_shape[1:]) for channels in _CHANNELS])
    import torch

    noise = sections["noise"].build()
    truth = _with_channels(torch.from_numpy(item.load()).double()[None], operator.image_shape[0])
    try:
        pictures = _pictures(operator.for_ids([item.id]), noise, truth, settings.seed, item.id)
    except ValueError as error:
        raise ConfigError(f"operator {sections['operator'].name}: {' '.join(str(error).split())}") from error
    heading = f"{sections['operator'].name}: {operator.image_shape} \N{RIGHTWARDS ARROW} {operator.measurement_shape}\n{noise.describe()}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as path:
        _save(heading, pictures, path)
    print(f"{noise.describe()}\npicture: {out}")
    return 0


def _with_operator(overrides: Sequence[str]) -> Sequence[str]:
    """The overrides, where one of them picks the operator."""
    pass

    if not any(text.startswith(("operator=", "operator.name=")) for text in overrides):
        raise ConfigError(f"operator=NAME is needed; the names are: {', '.join(names('operator'))}")
    return overrides


def _build(component: Component, shapes: Sequence[tuple[int, ...]]) -> Any:
    """The operator for the first of ``shapes`` that it takes. Raises the ConfigError of the first if it takes none."""
    refusals: list[ConfigError] = []
    for shape in shapes:
        try:
            return component.build(image_shape=shape)
        except ConfigError as error:
            refusals.append(error)
    raise refusals[0]


def _with_channels(rgb: Tensor, channels: int) -> Tensor:
    """An image (1, 3, H, W) with 3 channels, 1 (grey, ITU-R 601 weights), or 2: real part in [0, 1] and imaginary part zero."""
    import torch

    if channels == 3:
        return rgb
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114], dtype=rgb.dtype)[:, None, None]).sum(1, keepdim=True)
    return grey if channels == 1 else torch.cat([(grey + 1) / 2, torch.zeros_like(grey)], dim=1)


def _pictures(operator: Any, noise: Any, x: Tensor, seed: int, id: str) -> list[_Picture]:
    """Truth and measurement, and for linear operators adjoint and pseudo-inverse. Images are scaled as the captions say."""
    from operators.core.picture import as_picture

    y = operator.measure(x, noise, seed=seed, ids=[id])
    seen = operator.view(2 * y - 1 if noise.intensity else y)[0]
    shape = " x ".join(map(str, y.shape[1:]))
    kind = "moduli" if y.is_complex() else "values"
    pictures = [
        _Picture("truth", _range(x, "values"), as_picture(x)[0]),
        _Picture("measurement", f"{shape}, {operator.measured} measured\n{_range(y.abs() if y.is_complex() else y, kind)}", seen),
    ]
    if not operator.linear:
        return [*pictures, _Picture("", "not linear: there is no adjoint\nand no pseudo-inverse to show")]
    back = operator.A_adjoint(y)
    scaled = as_picture(back, normalise=True)[0]
    # Of counts, which are not negative, zero is black.
    shown, span = (2 * scaled - 1, "0") if noise.intensity and x.shape[1] != 2 else (scaled, "\N{MINUS SIGN}1")
    pictures.append(_Picture("adjoint", f"{_range(back, 'values')},\nscaled to [{span}, 1]", as_picture(shown[None])[0]))
    try:
        inverse = operator.A_dagger(y, tol=_INVERSE_TOL)
    except RuntimeError as error:
        return [*pictures, _Picture("pseudo-inverse", f"not found: {error}")]
    inverse = 2 * inverse - 1 if noise.intensity else inverse
    how = "closed form" if operator.closed_form_inverse else f"conjugate gradients stopped\nat a residual of {_INVERSE_TOL:g}"
    return [*pictures, _Picture("pseudo-inverse", f"{_range(inverse, 'values')},\n{how}", as_picture(inverse)[0])]


def _range(t: Tensor, what: str) -> str:
    return f"{what} {float(t.min()):.3g} to {float(t.max()):.3g}"


def _save(heading: str, pictures: Sequence[_Picture], path: Path) -> None:
    """Writes the pictures in a row, each on [-1, 1] and clipped to it, with its title above and its caption below."""
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from invsolve.pictures.panels import to_bytes

    height, width = next(p.content for p in pictures if p.content is not None).shape[1:]
    side_w, side_h = 3.0, 3.0 * min(max(height / width, 0.4), 2.5)
    total_w, total_h = len(pictures) * (side_w + 0.25) + 0.25, side_h + 1.75
    figure = Figure(figsize=(total_w, total_h), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.25 / total_w, 1 - 0.12 / total_h, heading, fontsize=11, color="black", va="top", parse_math=False)
    for place, picture in enumerate(pictures):
        left = 0.25 + place * (side_w + 0.25)
        axes = figure.add_axes((left / total_w, 0.65 / total_h, side_w / total_w, side_h / total_h))
        axes.set_title(picture.title, fontsize=13, fontweight="bold", color="black", parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
        if picture.content is None:
            axes.axis("off")
            text = "\n".join(line for part in picture.caption.split("\n") for line in textwrap.wrap(part, 36))
            axes.text(0.5, 0.5, text, fontsize=10, color="black", ha="center", va="center", transform=axes.transAxes)
            continue
        axes.set_xlabel(picture.caption, fontsize=10, color="black")
        axes.imshow(to_bytes(picture.content.numpy()), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    figure.savefig(path, format="png", metadata={"Software": None})
