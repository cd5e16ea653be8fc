"""Colour, exposure, sensing, quantisation and tomography."""

from collections.abc import Callable

from operators import HDR, JPEG, Colourisation, CompressedSensing, Demosaicing, Operator, StructuredSensing, Tomography

CASES: dict[str, Callable[[], Operator]] = {
    "colourisation": lambda: Colourisation((3, 5, 6)),
    "colourisation bt601": lambda: Colourisation((3, 6, 7), weights="bt601"),
    "colourisation, 4 channels": lambda: Colourisation((4, 3, 5)),
    "demosaicing": lambda: Demosaicing((3, 6, 8)),
    "demosaicing odd": lambda: Demosaicing((3, 7, 5), pattern="GBRG"),
    "hdr": lambda: HDR((3, 8, 9)),
    "compressed sensing": lambda: CompressedSensing((1, 5, 6), measurements=11),
    "compressed sensing, square": lambda: CompressedSensing((3, 2, 3), measurements=18, seed=4),
    "structured sensing": lambda: StructuredSensing((3, 6, 8), measurements=40),
    "structured sensing odd": lambda: StructuredSensing((1, 7, 5), measurements=12),
    "structured sensing vector": lambda: StructuredSensing((13,), measurements=13),
    "jpeg": lambda: JPEG((3, 16, 8), quality=30),
    "jpeg grey odd": lambda: JPEG((1, 9, 12), quality=10),
    "tomography": lambda: Tomography((3, 6, 6), views=5),
    "tomography odd, limited angle": lambda: Tomography((1, 7, 7), views=4, first=-20.0, last=70.0, detectors=6),
    "tomography, one pixel": lambda: Tomography((1, 1, 1), views=3),
}
