"""Evaluations on Lightning: many images, any number of devices and nodes, interrupted and continued without loss.

`evaluate` is what `invsolve eval` calls. With a Trainer of your own::

    config = load("photo_inpaint", ["data.root=photos"])
    trainer = Trainer(devices=2, strategy="ddp", callbacks=[ReconstructionWriter(out="runs/mine")])
    trainer.predict(ReconstructionModule.from_config(config), MeasurementDataModule.from_config(config), return_predictions=False)

`score` makes the tables of what was written, `compare` sets several runs side by side, `report` makes a page of pictures and charts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from operators.names import missing

if TYPE_CHECKING:
    from invsolve.evaluation.comparison import compare
    from invsolve.evaluation.datamodule import MeasurementDataModule
    from invsolve.evaluation.launch import evaluate
    from invsolve.evaluation.module import ReconstructionModule
    from invsolve.evaluation.reporting import report
    from invsolve.evaluation.scoring import score
    from invsolve.evaluation.writer import ReconstructionWriter

_HOMES = {
    "MeasurementDataModule": "datamodule:MeasurementDataModule",
    "ReconstructionModule": "module:ReconstructionModule",
    "ReconstructionWriter": "writer:ReconstructionWriter",
    "compare": "comparison:compare",
    "evaluate": "launch:evaluate",
    "report": "reporting:report",
    "score": "scoring:score",
}

__all__ = ["MeasurementDataModule", "ReconstructionModule", "ReconstructionWriter", "compare", "evaluate", "report", "score"]


def __getattr__(name: str) -> Any:
    # Tables need no Lightning, which takes seconds to import.
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(import_module(f"invsolve.evaluation.{module}"), attribute)
    raise missing(__name__, name, __all__)
