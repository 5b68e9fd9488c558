"""Random bits: the published generator, the same on every backend, whole or resumed."""

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

import xbp
from xbp.backend import backend_of, dtype_name, find_backend
from xbp.errors import InputError
from xbp.primitives import philox4x32, random_bits
from xbp.random import (
    RandomStream,
    as_stream,
    categorical,
    fresh_seed,
    generator,
    permutation,
    words_of,
)
from xbp.testing import oracles

HERE = xbp.available_backends()
HOST = np.zeros(1)
every_backend = pytest.mark.parametrize("name", HERE)
words = st.integers(0, 2**32 - 1)
counters = st.tuples(words, words, words, words)


def as_arrays(name: str, rows: list[oracles.Words]) -> tuple[Any, Any, Any, Any]:
    """Four arrays of a backend, one for each word of the rows."""
    columns = np.array(rows, dtype=np.int64).T
    first, second, third, fourth = (find_backend(name).asarray(column) for column in columns)
    return first, second, third, fourth


def as_rows(arrays: tuple[Any, ...]) -> list[tuple[int, ...]]:
    return list(zip(*(xbp.to_numpy(array).tolist() for array in arrays), strict=True))


def host_bits(stream: RandomStream, *shape: int) -> NDArray[Any]:
    return xbp.to_numpy(stream.bits(shape, like=HOST))


# --- Philox --------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize(("counter", "key", "expected"), oracles.PHILOX_KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(
    name: str, counter: oracles.Words, key: oracles.Pair, expected: oracles.Words
) -> None:
    found = philox4x32(as_arrays(name, [counter]), key)
    assert as_rows(found) == [expected]
    assert {dtype_name(array.dtype) for array in found} == {"int64"}


@pytest.mark.parametrize(("counter", "key", "expected"), oracles.PHILOX_KNOWN_ANSWERS)
def test_philox_takes_plain_ints_too(
    counter: oracles.Words, key: oracles.Pair, expected: oracles.Words
) -> None:
    assert philox4x32(counter, key) == expected


@every_backend
@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(counters, min_size=1, max_size=5),
    key=st.tuples(words, words),
    rounds=st.integers(0, 12),
)
def test_philox_equals_the_definition_in_exact_integers(
    name: str, rows: list[oracles.Words], key: oracles.Pair, rounds: int
) -> None:
    found = philox4x32(as_arrays(name, rows), key, rounds)
    assert as_rows(found) == [oracles.philox4x32(row, key, rounds) for row in rows]


def test_a_draw_of_more_blocks_than_the_counter_has_is_refused() -> None:
    with pytest.raises(OverflowError, match=r"at most \d+ words"):
        random_bits(HOST, (2**33, 2), key=(0, 0), counter=(0, 0, 0))


# --- Stream --------------------------------------------------------------------------------------

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (2, 0, 3), (3, 5), (2, 3, 5, 7)]


@every_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", [0, 3, 2**32 - 1, 2**32, 2**40 + 5, 2**64 - 1])
def test_bits_are_philox_of_block_draw_and_step(
    name: str, shape: tuple[int, ...], step: int
) -> None:
    stream = RandomStream(11, step=step)
    like = find_backend(name).asarray([0.0], dtype="float32")
    size = int(np.prod(shape))
    for draw in range(2):
        bits = stream.bits(shape, like=like)
        assert backend_of(bits) == backend_of(like)
        assert dtype_name(bits.dtype) == "int64"
        assert tuple(bits.shape) == shape
        blocks = (
            oracles.philox4x32((block, draw, step % 2**32, step // 2**32), stream.key)
            for block in range(-(-size // 4))
        )
        expected = [word for block in blocks for word in block][:size]
        assert xbp.to_numpy(bits).reshape(-1).tolist() == expected


def test_a_seed_gives_these_very_bits() -> None:
    assert host_bits(RandomStream(0), 4).tolist() == [524788716, 2414967483, 2320335004, 3719855104]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool"])
def test_the_dtype_of_the_neighbour_does_not_matter(dtype: str) -> None:
    bits = RandomStream(5).bits((9,), like=np.zeros(2, dtype=dtype))
    assert bits.tolist() == host_bits(RandomStream(5), 9).tolist()


def test_a_larger_shape_begins_with_the_bits_of_a_smaller_one() -> None:
    assert (
        host_bits(RandomStream(5), 3).tolist()
        == host_bits(RandomStream(5), 2, 5).reshape(-1)[:3].tolist()
    )


@given(seed=st.integers(0, 2**70), step=st.integers(0, 2**40), steps=st.integers(1, 4))
def test_a_stream_that_jumps_equals_one_that_ran_through(seed: int, step: int, steps: int) -> None:
    through = RandomStream(seed, step=step)
    for _ in range(steps):
        through.bits((5,), like=HOST)  # independent of earlier draws
        through.advance()
    expected = [host_bits(through, 6).tolist() for _ in range(2)]

    resumed = RandomStream(seed, step=step + steps)
    assert [host_bits(resumed, 6).tolist() for _ in range(2)] == expected
    jumped = RandomStream(seed)
    jumped.bits((5,), like=HOST)
    jumped.advance(step + steps)
    assert [host_bits(jumped, 6).tolist() for _ in range(2)] == expected


def test_advance_goes_back_too() -> None:
    stream = RandomStream(1)
    first = host_bits(stream, 5).tolist()
    stream.advance()
    stream.advance(0)
    assert host_bits(stream, 5).tolist() == first


@every_backend
@pytest.mark.parametrize("step", [0, 5, 2**32 - 1, 2**32 + 7])
def test_a_step_may_be_known_to_the_device_alone(name: str, step: int) -> None:
    """A step as two 0-d arrays on the device gives the bits of the step as a number."""
    like = find_backend(name).asarray(np.zeros(1, np.float32))
    here, there = RandomStream(3, step=step), RandomStream(3)
    there.bits((5,), like=like)
    there.advance_to(tuple(backend_of(like).asarray(word) for word in words_of(step)))  # type: ignore[arg-type]
    for shape in ((2, 3), (7,)):
        bits = (xbp.to_numpy(stream.bits(shape, like=like)) for stream in (here, there))
        assert np.array_equal(*bits)
    there.advance()  # the next step on the host
    assert np.array_equal(host_bits(there, 4), host_bits(RandomStream(3, step=1), 4))


@every_backend
@pytest.mark.parametrize("total", [0, 1, 4, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_share_has_the_bits_of_its_rows_in_the_whole(name: str, size: int, total: int) -> None:
    """Several draws, also (N·T, C) for samples of T parts, and with the step on the device."""
    like = find_backend(name).asarray(np.zeros(1, np.float32))
    step = tuple(backend_of(like).asarray(word) for word in words_of(2**33 + 5))
    for rank in range(size):
        whole, share = RandomStream(3), RandomStream(3)
        share.take_share(rank, size, total)
        rows = len(range(total)[rank::size])
        for onto_device in (False, True):
            if onto_device:
                whole.advance_to(step)  # type: ignore[arg-type]
                share.advance_to(step)  # type: ignore[arg-type]
            for shape in ((), (3,), (2, 5)):
                bits = xbp.to_numpy(whole.bits((total, *shape), like=like))
                mine = xbp.to_numpy(share.bits((rows, *shape), like=like))
                assert np.array_equal(mine, bits[rank::size])
            parts = xbp.to_numpy(whole.bits((2 * total, 3), like=like)).reshape(total, 6)
            mine = xbp.to_numpy(share.bits((2 * rows, 3), like=like))
            assert np.array_equal(mine, parts[rank::size].reshape(2 * rows, 3))


@pytest.mark.parametrize(("rank", "shape"), [(0, (3, 2)), (0, ()), (2, (1, 2))])
def test_bits_of_something_else_than_the_rows_of_a_share_are_refused(
    rank: int, shape: tuple[int, ...]
) -> None:
    stream = RandomStream(0)
    stream.take_share(rank, 3, 2 if rank else 4)
    with pytest.raises(
        InputError, match=r"are not those of \d rows, this process's share of a batch"
    ):
        stream.bits(shape, like=HOST)


@pytest.mark.parametrize("share", [(3, 3, 5), (-1, 3, 5), (0, 0, 5), (0, 1, -1), (0, 1, 2.0)])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(InputError, match=r"^(rank|size|total) must be"):
        RandomStream(0).take_share(*share)


def test_seeds_steps_and_draws_all_differ() -> None:
    blocks = set()
    for seed in (0, 1, 2**32, 2**64):
        for step in (0, 1, 2**32, 2**63):
            stream = RandomStream(seed, step=step)
            blocks |= {tuple(host_bits(stream, 4).tolist()) for _ in range(3)}
    assert len(blocks) == 4 * 4 * 3


@pytest.mark.parametrize("step", [-1, 2**64, 0.5, True, "1", np.float64(2.0)])
def test_a_step_that_is_no_64_bit_count_is_one_sentence(step: Any) -> None:
    with pytest.raises(InputError, match=r"^step must be .*, got .*$"):
        RandomStream(0, step=step)
    with pytest.raises(InputError, match=r"^step must be .*, got .*$"):
        RandomStream(0).advance(step)


@every_backend
def test_a_step_may_be_a_numpy_integer(name: str) -> None:
    like = find_backend(name).asarray([0.0])
    seed: Any = np.int64(3)
    step: Any = np.int64(2**40)
    bits = RandomStream(seed, step=step).bits((5,), like=like)
    assert xbp.to_numpy(bits).tolist() == host_bits(RandomStream(3, step=2**40), 5).tolist()


# n words of one seed; fair bits are within 4.5 standard deviations with
# a probability of 1 - 7e-6 per statement; the seed is fixed.
N, SIGMAS = 2**18, 4.5


def standard(bits: NDArray[Any]) -> NDArray[np.float64]:
    """Uniform words, scaled to mean 0 and variance 1."""
    return np.asarray((bits / 2**32 - 0.5) * np.sqrt(12.0))


def test_bits_have_the_mean_and_the_variance_of_a_uniform_distribution() -> None:
    bits = host_bits(RandomStream(2026), N)
    assert bits.min() >= 0
    assert bits.max() < 2**32
    u = standard(bits)
    assert abs(u.mean()) < SIGMAS / np.sqrt(N)
    # The variance of u² is E[u⁴] - 1 = 9/5 - 1.
    assert abs((u * u).mean() - 1) < SIGMAS * np.sqrt(0.8 / N)


def test_each_of_the_32_bits_is_set_half_the_time() -> None:
    bits = host_bits(RandomStream(2026), N)
    ones = np.array([((bits >> place) & 1).sum() for place in range(32)])
    assert np.all(np.abs(ones - N / 2) < SIGMAS * np.sqrt(N) / 2)


def test_neighbours_draws_steps_and_seeds_are_uncorrelated() -> None:
    stream = RandomStream(2026)
    first, second = (standard(host_bits(stream, N)) for _ in range(2))
    stream.advance()
    later = standard(host_bits(stream, N))
    other = standard(host_bits(RandomStream(2027), N))
    products = {"neighbour": first * np.roll(first, 1), "block": first * np.roll(first, 4)}
    products |= {"draw": first * second, "step": first * later, "seed": first * other}
    # A product of two such independent numbers has mean 0 and variance 1.
    far = [name for name, p in products.items() if abs(p.mean()) > SIGMAS / np.sqrt(N)]
    assert far == []


def test_a_stream_stands_for_itself_and_a_seed_for_a_new_one() -> None:
    stream = RandomStream(3)
    assert as_stream(stream) is stream
    assert as_stream(3).key == stream.key
    assert as_stream(default_rng(3)).key == as_stream(default_rng(3)).key
    assert as_stream(None) is None


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**100, np.int64(7), np.uint8(7)])
def test_an_int_stands_for_a_generator_of_that_seed(seed: int) -> None:
    assert generator(seed).random(3).tolist() == default_rng(int(seed)).random(3).tolist()
    assert fresh_seed(seed) == seed
    assert type(fresh_seed(seed)) is int


def test_a_generator_is_used_as_it_is_and_advances() -> None:
    rng = default_rng(1)
    assert generator(rng) is rng
    first, second = fresh_seed(rng), fresh_seed(rng)
    assert first != second
    assert [first, second] == [int(s) for s in default_rng(1).integers(2**63, size=2)]
    assert RandomStream(default_rng(1)).key == RandomStream(first).key


def test_none_is_fresh_entropy() -> None:
    assert isinstance(generator(None), Generator)
    assert generator(None).random() != generator(None).random()
    assert fresh_seed(None) != fresh_seed(None)
    seeds = [fresh_seed() for _ in range(64)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62  # all are below it with probability 2**-64
    assert RandomStream().key != RandomStream().key


def test_the_global_seed_of_numpy_changes_nothing() -> None:
    state = np.random.get_state()  # noqa: NPY002
    try:
        drawn = []
        for _ in range(2):
            np.random.seed(0)  # noqa: NPY002
            drawn.append((fresh_seed(), generator().random()))
        assert drawn[0] != drawn[1]
    finally:
        np.random.set_state(state)  # noqa: NPY002


WRONG = [-1, True, np.True_, 1.0, np.float64(1.0), "0", [1], np.random.RandomState(0)]


@pytest.mark.parametrize("use", [generator, fresh_seed, RandomStream, as_stream])
@pytest.mark.parametrize("rng", WRONG, ids=lambda rng: f"{type(rng).__name__}")
def test_what_is_no_seed_is_one_sentence(use: Any, rng: Any) -> None:
    with pytest.raises(InputError) as caught:
        use(rng)
    message = str(caught.value)
    assert message.startswith("rng must be a non-negative int, a numpy.random.Generator or None")
    assert repr(rng) in message
    assert "\n" not in message


# --- shuffles ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**70), epoch=st.integers(0, 10**6), n=st.integers(0, 50))
def test_a_permutation_has_each_index_once_and_is_the_same_again(
    seed: int, epoch: int, n: int
) -> None:
    order = permutation(seed, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert permutation(seed, epoch, n).tolist() == order.tolist()


def test_permutations_differ_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    orders = {tuple(permutation(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_each_permutation_of_three_comes_equally_often() -> None:
    epochs = 3000
    codes = [int(permutation(0, epoch, 3) @ [9, 3, 1]) for epoch in range(epochs)]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 6
    # Each count is binomial with p = 1/6.
    assert np.all(np.abs(counts - epochs / 6) < SIGMAS * np.sqrt(epochs * 5 / 36))


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (None, 0), (0.5, 0), (True, 0), (0, -1)])
def test_a_permutation_needs_a_seed_and_an_epoch_that_are_counts(seed: Any, epoch: Any) -> None:
    with pytest.raises(InputError, match=r"^(seed|epoch) must be an integer of at least 0, got"):
        permutation(seed, epoch, 5)


def test_classes_are_drawn_by_their_probabilities() -> None:
    logits = np.log([[0.1, 0.2, 0.3, 0.4]])
    rng, n = generator(0), 20_000

    def share(**options: Any) -> Any:
        return np.bincount(categorical(np.tile(logits, (n, 1)), rng, **options), minlength=4) / n

    # σ of a share is at most ½/√n = 0.0035; 5 σ.
    assert np.abs(share() - [0.1, 0.2, 0.3, 0.4]).max() < 0.018
    squares = np.array([1, 4, 9, 16]) / 30
    assert np.abs(share(temperature=0.5) - squares).max() < 0.018
    assert np.abs(share(top_k=2) - [0, 0, 3 / 7, 4 / 7]).max() < 0.018
    assert share(top_k=9)[0] > 0.05
    assert share(temperature=0).tolist() == [0, 0, 0, 1]
    assert share(temperature=1e-320).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_a_probability_of_zero_is_never_drawn(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of [0, 1)."""
    drawing = Mock(random=lambda shape: np.full(shape, u))
    monkeypatch.setattr(xbp.random, "generator", lambda rng: drawing)
    logits = np.array([[-np.inf, 0.0, 1.0, -np.inf]])
    assert categorical(logits).tolist() == [1 if u == 0 else 2]


def test_a_logit_of_nan_is_refused() -> None:
    with pytest.raises(InputError, match="logits hold nan"):
        categorical(np.array([[np.nan, 1.0]]))


def test_stream_is_the_earlier_name_of_random_stream() -> None:
    assert xbp.random.Stream is xbp.random.RandomStream
