"""What is kept of the way to a result: small pictures of some steps, and the residuals that were read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from invsolve.engine.observers import Event, Residuals
from invsolve.pictures import panels


class Frames:
    """An observer that keeps x0_hat of the first sample of every id at chosen steps, as bytes; `decode` makes it an image."""

    def __init__(self, indices: Sequence[int], decode: Callable[[Tensor], Tensor]) -> None:
        self.indices, self.decode = set(indices), decode
        self.kept: dict[str, list[Any]] = {}

    def __call__(self, event: Event) -> None:
        """Keeps the picture of a step that was chosen."""
        if event.index not in self.indices or event.x0_hat is None:
            return
        for place, (id, k) in enumerate(event.rows):
            if k == 0:
                image = self.decode(event.x0_hat[place : place + 1].detach())[0]
                self.kept.setdefault(str(id), []).append(panels.to_bytes(image.float().cpu().numpy()))


def traced(trace: Residuals, id: str, samples: int) -> dict[str, Any]:
    """The readings of an image, if its samples were read at the same steps (one of several chunks may have been resumed)."""
    found = [trace.kept.get((id, k), []) for k in range(samples)]
    steps = [[index for index, _ in one] for one in found]
    if not steps[0] or any(one != steps[0] for one in steps):
        return {}
    return {"steps": steps[0], "residuals": [[float(f"{value:.4g}") for _, value in one] for one in found]}
