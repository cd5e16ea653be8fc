"""Phase retrieval: Fourier magnitudes, coded diffraction, structured random fields, ptychography."""

from collections.abc import Callable

from operators import CodedDiffraction, FourierMagnitude, Operator, Ptychography, StructuredPhaseRetrieval

CASES: dict[str, Callable[[], Operator]] = {
    "phase retrieval": lambda: FourierMagnitude((3, 8, 12)),
    "phase retrieval, odd": lambda: FourierMagnitude((1, 9, 7)),
    "phase retrieval, unit range": lambda: FourierMagnitude((3, 8, 7), oversample=4.0, range="unit"),
    "phase retrieval, intensity": lambda: FourierMagnitude((2, 6, 8), output="intensity"),
    "coded diffraction": lambda: CodedDiffraction((3, 6, 7)),
    "coded diffraction, phases": lambda: CodedDiffraction((1, 7, 6), patterns=3, kind="phase", output="intensity", range="unit"),
    "structured phase retrieval": lambda: StructuredPhaseRetrieval((3, 6, 7), size=(9, 9)),
    "structured phase retrieval, fewer": lambda: StructuredPhaseRetrieval((1, 7, 8), layers=3, size=(5, 6), kind="signs", range="unit"),
    "ptychography": lambda: Ptychography((3, 9, 10), probe_size=6, step=3),
    "ptychography, gaussian": lambda: Ptychography((1, 8, 8), probe_size=5, step=3, probe="gaussian", output="intensity", range="unit"),
}
