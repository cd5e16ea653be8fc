"""Evaluations on Lightning: many images, any number of devices and nodes, interrupted and continued without loss.

`evaluate` is what `invsolve eval` calls. With a Trainer of your own::

    config = load("photo_inpaint", ["data.root=photos"])
    trainer = Trainer(devices=2, strategy="ddp", callbacks=[ReconstructionWriter(out="runs/mine")])
    trainer.predict(ReconstructionModule.from_config(config), MeasurementDataModule.from_config(config), return_predictions=False)
"""

from invsolve.runs.lightning.callback import ReconstructionWriter
from invsolve.runs.lightning.datamodule import MeasurementDataModule
from invsolve.runs.lightning.launch import evaluate
from invsolve.runs.lightning.module import ReconstructionModule

__all__ = ["MeasurementDataModule", "ReconstructionModule", "ReconstructionWriter", "evaluate"]
