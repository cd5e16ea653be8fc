"""What is reconstructed: images, crops, stored measurements, MRI and rendered data, each a section of a configuration."""

from __future__ import annotations

import importlib
from typing import Any

from operators.core.names import missing

DATA = {
    "crops": "invsolve.data.crops:Crops",
    "glyphs": "invsolve.data.glyphs:Glyphs",
    "images": "invsolve.data.images:Images",
    "measurement": "invsolve.data.measurements:Measurement",
    "mri_data": "invsolve.data.mri:MRIData",
    "phantom": "invsolve.data.phantoms:Phantoms",
}

__all__ = sorted({"DATA", *(home.partition(":")[2] for home in DATA.values())})


def __getattr__(name: str) -> Any:
    # Each class when it is asked for: volumes need h5py, glyphs need fonts.
    for home in DATA.values():
        module, _, cls = home.partition(":")
        if cls == name:
            return getattr(importlib.import_module(module), cls)
    raise missing(__name__, name, __all__)
