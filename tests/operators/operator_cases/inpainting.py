"""Every kind of mask, shared and one per image."""

from collections.abc import Callable

from operators import Inpainting, Operator

CASES: dict[str, Callable[[], Operator]] = {
    "lines": lambda: Inpainting((3, 9, 8), kind="lines", fraction=0.3, thickness=2, seed=1),
    "strokes": lambda: Inpainting((1, 10, 7), kind="strokes"),
    "text": lambda: Inpainting((3, 12, 17), kind="text", text="abc", size=8),
    "half": lambda: Inpainting((3, 7, 9), kind="half"),
    "expand": lambda: Inpainting((1, 9, 8), kind="expand", size=(3, 2)),
    "alternate": lambda: Inpainting((3, 5, 6), kind="alternate"),
    "super-resolve": lambda: Inpainting((1, 5, 8), kind="super_resolve"),
    "random, mask per image": lambda: Inpainting((3, 6, 7), kind="random", per_image=True).for_ids(range(3)),
    "strokes, mask per image": lambda: Inpainting((1, 10, 7), kind="strokes", seed=3, per_image=True).for_ids(range(3)),
}
BATCHES = {"random, mask per image": (3,), "strokes, mask per image": (3,)}
