"""Inpainting: some pixels are not observed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from operators.core.picture import as_picture
from operators.core.spectral import SpectralOperator
from operators.core.streams import generator
from operators.core.tensors import shape_of
from operators.pixels.masks import KINDS, SEEDED, draw_mask, folder_mask, listed


class Inpainting(SpectralOperator):
    """Sets hidden pixels to zero, jointly in all channels: (B, C, H, W) -> (B, C, H, W), y = mask * x.

    kind and its options (`operators.pixels.masks` has the exact definitions and defaults):
    "box": one hidden box of side `size` (int, or (h, w); default half the sides) at a random place `margin` pixels from the
    border; "random": exactly floor(fraction H W) random pixels removed (default 0.7); "lines": random straight lines `thickness`
    pixels wide, until `fraction` (0.25) is hidden; "strokes": free-form brush strokes, likewise (0.3); "text": rows of `text` in
    letters of `size` pixels; "half": the half at `side` hidden (default right); "expand": only a centred box of side `size` known
    (default a quarter); "alternate": every second row hidden; "super_resolve": every second pixel of every second row known
    (the last four and the idea of the set: RePaint, Lugmayr et al., arXiv:2201.09865); "file": `mask` from a PNG or .npy file
    (or a tensor (H, W)), white or nonzero = known.

    Random masks are drawn once, here, from `seed`: one for all images, buffer `mask` (1, H, W), 1 = known. With per_image=True
    every image has its own, which follows from (seed, image id) alone: `for_ids(ids)` gives the operator of a batch, with
    buffer `mask` (B, 1, H, W); `measure` and runs call it. For kind="file", `mask` is then a folder with <id>.png or <id>.npy.
    Measurements are full size with zeros at hidden pixels, which count neither in `measured` nor in the noise
    (DPS, Chung et al., arXiv:2209.14687, App. D adds noise there too).

    Raises ValueError for an unknown kind, options of another kind, a box that does not fit, a fraction outside [0, 1), a
    mask whose size is not (H, W) or with several values other than 0, several masks in one tensor or file, a mask that hides
    every pixel, per_image with a kind that is the same for all, and on use of a per_image operator not bound to ids.
    """

    # Behind a map that gives complex values, such as a Fourier transform of your own.
    complex_signals = True

    def __init__(
        self,
        image_shape: Sequence[int],
        kind: str = "box",
        size: int | Sequence[int] | None = None,
        fraction: float | None = None,
        margin: int = 0,
        mask: str | Path | Tensor | None = None,
        seed: int = 0,
        thickness: int | None = None,
        text: str | None = None,
        side: str | None = None,
        per_image: bool = False,
    ) -> None:
        shape_of(image_shape, 3)
        if kind not in KINDS:
            raise ValueError(f"kind must be {listed(list(KINDS))}, got {kind!r}")
        options: dict[str, Any] = {"size": size, "fraction": fraction, "mask": mask, "thickness": thickness, "text": text, "side": side}
        options = {name: value for name, value in (*options.items(), ("margin", margin or None)) if value is not None}
        for name, value in options.items():
            if name not in KINDS[kind]:
                owners = listed([owner for owner in KINDS if name in KINDS[owner]])
                shown = "a tensor" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"{name} belongs to kind={owners}, got {name}={shown} with kind={kind!r}")
        if kind == "file" and mask is None:
            raise ValueError("mask and kind='file' go together, got mask=None, kind='file'")
        super().__init__(image_shape, image_shape)
        self.kind, self.seed, self.per_image, self.options = kind, seed, per_image, options
        if per_image:
            self._check_per_image()
        self.register_buffer("mask", None if per_image else self._draw()[None])

    def _check_per_image(self) -> None:
        if self.kind == "file" and (isinstance(self.options["mask"], Tensor) or not Path(self.options["mask"]).is_dir()):
            shown = "a tensor" if isinstance(self.options["mask"], Tensor) else repr(str(self.options["mask"]))
            raise ValueError(f"per_image=True with kind='file' takes a folder that holds a mask file per image id, got mask={shown}")
        if self.kind not in (*SEEDED, "file"):
            raise ValueError(f"per_image=True needs a kind that can differ, {listed((*SEEDED, 'file'))}; {self.kind!r} is the same for all")
        if self.kind != "file":
            # Options that cannot be drawn from are refused here, not at the first image.
            self._draw("per_image")

    def _draw(self, *id: int | str) -> Tensor:
        """The mask (H, W) of an image id, or without one that of all images."""
        options, (_, height, width) = self.options, self.image_shape
        if self.kind == "file" and id:
            options = {"mask": folder_mask(options["mask"], *id)}
        known = draw_mask(self.kind, height, width, options, generator(self.seed, f"{self.kind} mask", *id))
        if not bool(known.any()):
            raise ValueError(f"the mask{f' of image {id[0]!r}' if id else ''} hides every pixel: nothing would be measured")
        return known

    def for_ids(self, ids: Sequence[int | str]) -> Inpainting:
        """With per_image: the operator of a batch of these ids, with `mask` (B, 1, H, W); itself otherwise."""
        if not self.per_image or self.ids == tuple(ids):
            return self
        bound = self._with_buffers(mask=torch.stack([self._draw(id) for id in ids])[:, None])
        bound.ids = tuple(ids)
        return bound

    def select(self, index: Tensor) -> Inpainting:
        """The operator for rows `index`, of the ids it is bound to; itself where one mask serves all rows."""
        if self.ids is None or len(self.ids) == 1:
            return self
        chosen = self._with_buffers(mask=self.mask[index.to(self.mask.device)])
        chosen.ids = tuple(self.ids[row] for row in index.tolist())
        return chosen

    def _known(self, like: Tensor) -> Tensor:
        self._bound()
        mask = self._as("mask", like)
        if mask.ndim == 4 and mask.shape[0] not in (1, like.shape[0]):
            many = f"the masks are those of {mask.shape[0]} images, got a batch of {like.shape[0]}"
            raise ValueError(f"{many}; select() the rows, or for_ids(ids)")
        return mask

    def _bound(self) -> None:
        if self.mask is None:
            raise ValueError("with per_image=True each image has its own mask: use op.for_ids(ids), one id per image (op.measure does)")

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._known(like)

    def restrict(self, y: Tensor) -> Tensor:
        """y (B, C, H, W) with hidden pixels set to zero."""
        return self._known(y) * y

    @property
    def measured(self) -> int:
        """Number of known pixels times channels; ValueError where it differs between images."""
        self._bound()
        counts = {int(count) for count in self.mask.flatten(-2).count_nonzero(-1).flatten()}
        if len(counts) > 1:
            raise ValueError(f"the masks of the images measure different numbers of pixels: {sorted(counts)}; select() one")
        channels: int = self.image_shape[0]
        return channels * counts.pop()

    def view(self, y: Tensor) -> Tensor:
        """The known pixels clamped to [-1, 1], hidden ones mid-grey."""
        return as_picture(self.restrict(y))
