"""What must not depend on the machine: instruction sets, the order of hashes, locale, time zone, the number of threads."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from problems import problem_16

from invsolve import Posterior, sample
from invsolve.config.identity import identity
from invsolve.config.load import load
from invsolve.engine.checkpoint import fingerprint
from invsolve.resources import resource
from invsolve.samplers import DPS
from invsolve.schedules import DDPM, moves
from invsolve.streams import Noise
from operators import MRI, Inpainting
from operators.core.streams import generator, standard_normal

COUNTS = [1, 15, 16, 17, 31, 37, 192, 3 * 64 * 64 + 5, 300_001]


def digest(*tensors):
    return hashlib.sha256(b"".join(t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors)).hexdigest()


def facts():
    """Digests of numbers and names; also run by other processes."""
    config = load("photo_sr4", ["sampler.zeta=0.5"])
    noise = Noise(3, [(f"i{k}", j) for k in range(2) for j in range(3)])
    target = Posterior(problem_16().prior, problem_16().likelihood)
    print_of = fingerprint(DPS(), target, moves(DDPM(steps=5)), 0, [("a", 0)], (1, 4, 4), torch.float64, "cpu")
    return {
        "numbers": [digest(standard_normal(count, [generator(0, "here", k) for k in range(2)])) for count in COUNTS],
        "noise": digest(*(noise.normal(shape) for shape in ((3, 8, 8), (5,), ()) for _ in range(20))),
        "double": digest(torch.randn(1001, dtype=torch.float64, generator=generator(0, "double"))),
        "masks": [digest(op.mask) for op in (Inpainting((3, 16, 16), kind="strokes"), MRI((2, 32, 32), kind="poisson", acceleration=4))],
        "identity": identity(config),
        "configuration": json.dumps(config.as_dict()),
        "names": {key: value for key, value in print_of.items() if key in ("sampler", "schedule", "seed", "rows", "shape")},
    }


def test_numbers_and_names_are_the_same_in_processes_of_another_kind():
    """To the last bit: without vector instructions, with other hashes, in another language, time zone and number of threads."""
    expected = json.dumps(facts(), sort_keys=True)
    code = "import json, sys; sys.path.insert(0, 'tests'); import test_everywhere as t; print(json.dumps(t.facts(), sort_keys=True))"
    kinds = [
        {"ATEN_CPU_CAPABILITY": "default", "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
        {"ATEN_CPU_CAPABILITY": "avx2", "PYTHONHASHSEED": "2", "TZ": "America/Lima", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "2"},
    ]
    for kind in kinds:
        paths = os.pathsep.join([str(resource()), str(resource("tests"))])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=resource(), env={**os.environ, "PYTHONPATH": paths, **kind}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected, kind


@pytest.mark.parametrize("count", COUNTS)
def test_the_numbers_are_those_of_torch_but_for_its_rounding(count):
    """And leave the generator where torch leaves it."""
    ours, theirs = ([generator(7, "here", k) for k in range(3)] for _ in range(2))
    found = standard_normal(count, ours)
    expected = torch.stack([torch.randn(count, generator=source) for source in theirs])
    assert found.dtype == torch.float32 and float((found - expected).abs().max()) < 4e-6
    if count % 16 == 0 or count < 16:
        assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(ours, theirs, strict=True))


def test_box_and_muller_in_double_precision():
    """Radii and angles from every part of their ranges, the ends included, against the library's logarithm and cosine."""
    from operators.core.streams import _box_muller

    edge = torch.tensor([0.0, 2.0**-24, 0.125, 0.25, 0.2928932, 0.29289323, 0.375, 0.5, 0.625, 0.75, 0.875, 1 - 2.0**-24])
    radii = torch.cat([edge, torch.rand(2036, generator=generator(1, "u"))])
    angles = torch.cat([edge.flip(0), torch.rand(2036, generator=generator(2, "u"))])
    u = torch.stack([radii.view(-1, 8), angles.view(-1, 8)], 1)
    found = _box_muller(u.reshape(1, -1)).view(-1, 2, 8)
    radius, angle = (-2 * torch.log1p(-u[:, 0].double())).sqrt(), 2 * torch.pi * u[:, 1].double()
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    assert float((found.double() - expected).abs().max()) < 3e-7 and bool(found.isfinite().all())


def test_two_threads_change_a_result_by_rounding_alone():
    posterior, threads = problem_16(rows=2), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(sample(DPS(), posterior, DDPM(steps=15), n=4, progress=False))
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(*found, rtol=0, atol=1e-10)
