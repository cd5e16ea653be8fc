"""Random streams: what they depend on, and that they are normal and independent."""

import math

import pytest
import scipy.stats
import torch
from problems import DOUBLE, randn, tensor

from invsolve.streams import _BLOCK_VALUES, GivenNoise, Noise

SHAPE = (3, 4)
ROWS = [(0, 0), (0, 1), (7, 0), ("7", 0), ("cat", 2)]


def draws(rows=ROWS, count=40, seed=5, shape=SHAPE, **options):
    """(count, rows, *shape)."""
    noise = Noise(seed, rows, dtype=DOUBLE, **options)
    return torch.stack([noise.normal(shape) for _ in range(count)])


def test_a_row_does_not_depend_on_its_neighbours_or_its_place():
    together = draws()
    for order in ([4, 2, 0, 1, 3], [1], [3, 0]):
        assert torch.equal(draws([ROWS[i] for i in order]), together[:, order])
    # Nor on how many there are, more than steps in a block included.
    crowd = [*ROWS, *((i, 5) for i in range(30))]
    assert torch.equal(draws(crowd)[:, : len(ROWS)], together)


def test_seed_id_kind_of_id_and_sample_index_each_name_a_stream():
    names = [(seed, *row) for seed in (0, 1, -1) for row in [(1, 0), ("1", 0), (1, 1), (11, 0), (0, 1), ("a", 0), ("a0", 0), (-1, 0)]]
    first = torch.stack([draws([(i, k)], 2, seed) for seed, i, k in names]).flatten(1)
    distances = torch.cdist(first, first) + 10 * torch.eye(len(names), dtype=DOUBLE)
    assert float(distances.min()) > 1, "two streams are alike"


def test_streams_do_not_touch_the_global_generator():
    state = torch.random.get_rng_state()
    one = draws()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(one, draws())
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("stop", [0, 1, 5, 15, 16, 17, 31, 32, 39])
def test_a_stream_resumes_anywhere_inside_a_block(stop):
    whole = draws(count=48)
    noise = Noise(5, ROWS, dtype=DOUBLE)
    for _ in range(stop):
        noise.normal(SHAPE)
    resumed = Noise(5, ROWS, dtype=DOUBLE)
    resumed.counts = dict(noise.counts)
    assert noise.counts == ({SHAPE: stop} if stop else {})
    assert torch.equal(torch.stack([resumed.normal(SHAPE) for _ in range(48 - stop)]), whole[stop:])


def test_nothing_repeats_across_blocks():
    flat = draws(count=70)[:, 0].flatten()
    assert len(flat.unique()) == flat.numel()


def test_shapes_are_streams_of_their_own_and_may_be_interleaved():
    straight = {shape: draws(shape=shape) for shape in ((12,), (3, 4), (4, 3), (34,), ())}
    noise = Noise(5, ROWS, dtype=DOUBLE)
    for i in range(40):
        for shape, expected in straight.items():
            assert torch.equal(noise.normal(shape), expected[i])
    flat = torch.stack([straight[s][0, 0].flatten() for s in ((12,), (3, 4), (4, 3))])
    assert float(torch.cdist(flat, flat).fill_diagonal_(9).min()) > 1


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", [(5,), (3, 40)], ids=["under 16 values", "over 16 values"])
def test_numbers_are_standard_normal(dtype, shape):
    noise = Noise(0, [(i, k) for i in range(10) for k in range(3)], dtype=dtype)
    values = torch.cat([noise.normal(shape).flatten() for _ in range(40)]).double()
    assert scipy.stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    n = values.numel()
    assert float(values.mean()) * math.sqrt(n) == pytest.approx(0, abs=4)
    assert float(values.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))


def test_rows_steps_and_entries_are_uncorrelated():
    count = 600
    values = draws(count=count).flatten(2)
    rows = values.permute(1, 0, 2).flatten(1)
    entries = values.permute(2, 0, 1).flatten(1)
    for variables in (rows, entries):
        n = variables.shape[1]
        off = torch.corrcoef(variables) - torch.eye(len(variables), dtype=DOUBLE)
        assert float(off.abs().max()) < 4.5 / math.sqrt(n)
    for lag in (1, 15, 16, 17):
        product = (values[lag:] * values[:-lag]).flatten()
        assert abs(float(product.mean())) < 4.5 / math.sqrt(product.numel())


def test_large_signals_are_drawn_in_shorter_blocks_with_the_same_laws():
    shape = (_BLOCK_VALUES // 3,)
    noise = Noise(0, [("a", 0)])
    three = [noise.normal(shape)[0, :1000].clone() for _ in range(4)]
    assert next(iter(noise._blocks.values()))[1].shape[0] == 3
    resumed = Noise(0, [("b", 1), ("a", 0)])
    resumed.counts = {shape: 3}
    assert torch.equal(resumed.normal(shape)[1, :1000], three[3])
    assert float(torch.corrcoef(torch.stack(three)).fill_diagonal_(0).abs().max()) < 4.5 / math.sqrt(1000)


def test_numbers_keep_dtype_and_shape_and_where_means_little_on_a_cpu():
    noise = Noise(3, ROWS, dtype=torch.float32)
    out = noise.normal(torch.Size(SHAPE))
    assert out.shape == (5, *SHAPE) and out.dtype == torch.float32
    assert torch.equal(out, Noise(3, ROWS, where="device").normal(list(SHAPE)))
    with pytest.raises(ValueError, match="where='gpu'; 'cpu' or 'device' is needed"):
        Noise(0, ROWS, where="gpu")


def test_the_numbers_handed_out_may_be_kept():
    noise = Noise(3, ROWS, dtype=DOUBLE)
    first = noise.normal(SHAPE)
    kept = first.clone()
    for _ in range(40):
        noise.normal(SHAPE)
    assert torch.equal(first, kept)


def test_ids_and_seeds_of_other_kinds_are_refused():
    for seed, rows in [(0, [(1.5, 0)]), (0, [(True, 0)]), (0, [(None, 0)]), ("0", [(0, 0)]), (True, [(0, 0)])]:
        with pytest.raises(ValueError, match="must be an int"):
            Noise(seed, rows).normal(SHAPE)


def test_the_numbers_are_these_for_ever():
    """Streams name published results: a change of these numbers is a change of every result made with a seed."""
    found = draws([(0, 0)], 17, seed=0, shape=(2,))[[0, 1, 16], 0]
    expected = [
        (0.2900727, 0.7963523),
        (0.8967101, 0.728653),
        (1.3842815, -0.6348293),
    ]
    # Drawn in single precision, whose last bit may differ between processors.
    assert torch.allclose(found, tensor(expected), rtol=0, atol=1e-6)


def test_precisions_share_their_noise():
    single, double = (Noise(0, [(0, 0)], dtype=d).normal(SHAPE) for d in (torch.float32, DOUBLE))
    assert single.dtype == torch.float32 and double.dtype == DOUBLE and torch.equal(single.to(DOUBLE), double)


def test_given_noise_is_handed_out_in_turn_and_counted():
    a, b = randn(2, 3, seed=1), randn(2, 4, 5, seed=2)
    noise = GivenNoise(a, b)
    assert noise.normal((3,)) is a and noise.normal((4, 5)) is b and noise.used == 2
    with pytest.raises(IndexError, match="drew noise 3 times, but only 2 tensors were given"):
        noise.normal((3,))
    with pytest.raises(ValueError, match=r"noise of shape \(3,\) was given, \(4,\) is needed"):
        GivenNoise(a).normal((4,))
