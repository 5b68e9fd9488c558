"""The sum of gradients over ranks: one call a step, weights, parameters without a gradient."""

from typing import Any

import numpy as np
import pytest
from parallel.shares import Thread, by_threads

import xbp
from xbp import nn, parallel
from xbp.backend import find_backend
from xbp.errors import BackendError, InputError
from xbp.parallel.gradients import Room, reduce_step
from xbp.testing import assert_no_host_sync

# --- weighted ------------------------------------------------------------------------------------


class Own:
    """A user's loss, which is not an `nn.Loss`."""

    def __call__(self, prediction: Any, target: Any) -> Any:
        n = len(target)
        return np.sum((prediction - target) ** 2) / n, 2 * (prediction - target) / n


LABELS = np.array([0, 2, 1, 1, 0, 2, 0])
NUMBERS = np.linspace(-1, 2, 21).reshape(7, 3)
LOSSES = {
    "mean": (nn.CrossEntropyLoss(), LABELS),
    "sum": (nn.CrossEntropyLoss("sum"), LABELS),
    "classes weighted": (nn.CrossEntropyLoss(weight=[1.0, 3.0, 0.5]), LABELS),
    "one class ignored": (nn.CrossEntropyLoss(ignore_index=0), LABELS),
    "all but nothing counts": (nn.CrossEntropyLoss(weight=[0.0, 0.0, 1.0]), LABELS),
    "nothing counts": (nn.CrossEntropyLoss(ignore_index=0), 0 * LABELS),
    "batchmean": (nn.MSELoss("batchmean"), NUMBERS),
    "entries": (nn.L1Loss(), NUMBERS),
    "a user's": (Own(), NUMBERS),
}


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("name", LOSSES)
def test_every_kind_of_mean_is_that_of_the_whole_batch(name: str, size: int) -> None:
    loss, target = LOSSES[name]
    x = np.random.default_rng(0).normal(size=(7, 4))

    def layer() -> nn.Linear:
        return nn.Linear(4, 3, dtype="float64", rng=1)

    whole = layer()
    y, backward = whole.forward(x)
    expected, gradient = loss(y, target)
    backward(gradient)

    def work(group: Thread) -> Any:
        own, mine = layer(), slice(group.rank, None, group.size)
        y, backward = own.forward(x[mine])
        value, gradient, weight = parallel.weighted(loss, y, target[mine])
        backward(gradient)
        value = parallel.reduce_gradients(own.parameters(), group, value, weight)
        assert group.sums == 1
        return value, own.weight.grad, own.bias.grad  # type: ignore[union-attr]

    for value, weight, bias in by_threads(size, work):
        np.testing.assert_allclose(value, expected, rtol=1e-14)  # a dozen roundings
        np.testing.assert_allclose(weight, whole.weight.grad, rtol=1e-13, atol=1e-15)
        assert whole.bias is not None
        np.testing.assert_allclose(bias, whole.bias.grad, rtol=1e-13, atol=1e-15)


def test_a_share_without_rows_has_no_loss_and_no_weight() -> None:
    nothing = np.zeros((0, 3), np.float32)
    for loss, weighs in ((nn.CrossEntropyLoss(), 0), (nn.CrossEntropyLoss("sum"), None)):
        value, gradient, weight = parallel.weighted(loss, nothing, np.zeros(0, np.int64))
        assert (float(value), value.dtype, value.shape) == (0.0, np.float32, ())
        assert (gradient.shape, gradient.dtype, weight) == ((0, 3), np.float32, weighs)


def test_of_several_outputs_each_gradient_is_weighted() -> None:
    a = np.ones((2, 3))
    loss = nn.CosineEmbeddingLoss()
    value, gradient, weight = parallel.weighted(loss, (a, 2 * a), np.array([-1, -1]))
    plain = loss((a, 2 * a), np.array([-1, -1]))
    assert weight == 2 and float(value) == 2 * float(plain[0])
    for found, expected in zip(gradient, plain[1], strict=True):
        np.testing.assert_array_equal(found, 2 * expected)


@pytest.mark.parametrize("counted", [3, np.asarray(3), np.asarray(3.0)])
def test_a_weight_leaves_the_dtype_of_the_gradient(counted: Any) -> None:
    class Counts(Own):
        def denominator(self, prediction: Any, target: Any) -> Any:
            return counted

    a = np.ones((2, 3), np.float32)
    _, gradient, weight = parallel.weighted(Counts(), a, np.zeros_like(a))
    assert weight is counted and gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient, np.full((2, 3), 3.0))


# --- reduce_gradients ----------------------------------------------------------------------------


def test_dtypes_travel_apart_and_come_back_as_they_were() -> None:
    dtypes = ["float32", "float64", "complex64", "float32"]

    def work(group: Thread) -> Any:
        owned = [nn.Parameter(np.zeros((2, k + 1), dtype)) for k, dtype in enumerate(dtypes)]
        for k, p in enumerate(owned):
            p.add_grad(np.full(p.shape, (group.rank + 1) * (k + 1), p.data.dtype))
        value = parallel.reduce_gradients(owned, group, np.asarray(6.0), 2)
        return group.sums, float(value), owned

    for sums, value, owned in by_threads(2, work):
        assert (sums, value) == (3, 3.0)
        for k, p in enumerate(owned):
            assert p.grad.dtype == p.data.dtype and p.grad.shape == p.shape
            assert (p.grad == 3 * (k + 1) / 4).all()


def test_a_parameter_has_a_gradient_if_it_has_one_on_any_rank() -> None:
    def work(group: Thread) -> Any:
        nowhere, here, everywhere = (nn.Parameter(np.zeros(2)) for _ in range(3))
        everywhere.add_grad(np.ones(2))
        if group.rank == 1:
            here.add_grad(np.ones(2))
        parallel.reduce_gradients([nowhere, here, everywhere], group, np.asarray(0.0), 1)
        return [None if p.grad is None else p.grad.tolist() for p in (nowhere, here, everywhere)]

    assert by_threads(2, work) == [[None, [0.5, 0.5], [1.0, 1.0]]] * 2


def test_a_gradient_that_a_rank_lacks_is_zero_also_where_the_last_step_left_one() -> None:
    """The arrays in which gradients travel are kept from step to step."""

    def work(group: Thread) -> Any:
        owned, room, found = [nn.Parameter(np.zeros(2)) for _ in range(2)], Room(), []
        for step in range(3):
            for p in owned:
                p.zero_grad()
            owned[0].add_grad(np.ones(2))
            if step == 0 or (step == 1 and group.rank == 1):
                owned[1].add_grad(np.full(2, 10.0))
            reduce_step(owned, group, np.asarray(0.0), None, room=room)
            found.append([None if p.grad is None else p.grad.tolist() for p in owned])
        return found

    expected = [[[2.0, 2.0], gradient] for gradient in ([20.0, 20.0], [10.0, 10.0], None)]
    assert by_threads(2, work) == [expected] * 2


def test_arrays_of_the_last_step_are_kept_for_equal_parameters_alone() -> None:
    def work(group: Thread) -> Any:
        room, found = Room(), []
        for shape, dtype in (((2,), "float32"), ((3,), "float32"), ((3,), "float64")):
            p = nn.Parameter(np.zeros(shape, dtype))
            p.add_grad(np.ones(shape, dtype))
            value, total, _ = reduce_step([p], group, np.asarray(1.0), 3, room=room)
            assert p.grad is not None and p.grad.dtype == p.data.dtype
            found.append((p.grad.tolist(), float(value), float(total)))
        return found

    third = [pytest.approx(1 / 3)]
    expected = [(n * third, pytest.approx(1 / 3), 6.0) for n in (2, 3, 3)]
    assert by_threads(2, work) == [expected] * 2


def test_arrays_are_kept_from_step_to_step() -> None:
    p, room, found = nn.Parameter(np.zeros(2)), Room(), []
    for _ in range(2):
        p.zero_grad()
        p.add_grad(np.ones(2))
        reduce_step([p], parallel.group(), np.asarray(1.0), 1, room=room)
        found.append(p.grad)
    assert np.shares_memory(*found)


def test_of_a_loss_that_is_a_sum_nothing_is_divided() -> None:
    """Its weight is the number of ranks; wishes are counted too."""

    def work(group: Thread) -> Any:
        p = nn.Parameter(np.zeros(2))
        p.add_grad(np.ones(2))
        told = reduce_step([p], group, np.asarray(2.0), None, wish=group.rank > 0)
        assert p.grad is not None
        return [*map(float, told), p.grad.tolist()]

    assert by_threads(3, work) == [[6.0, 3.0, 2.0, [3.0, 3.0]]] * 3


def test_a_group_sums_parts_in_a_way_of_its_own() -> None:
    class Own(parallel.Alone):
        def sum_parts(self, whole: Any, parts: Any) -> None:
            for where, part in parts:
                whole[where] = 0.0 if part is None else 10 * np.ravel(part)

    owned = [nn.Parameter(np.zeros((1, 2))) for _ in range(2)]
    owned[1].add_grad(np.array([[6.0, 2.0]]))
    value = parallel.reduce_gradients(owned, Own(), np.asarray(4.0), 2)
    assert (float(value), owned[0].grad) == (2.0, None)
    np.testing.assert_array_equal(owned[1].grad, [[3.0, 1.0]])


class Twice(parallel.Alone):
    """A group of two ranks; the other has equal values, except for `factor` in place of 1."""

    size = 2

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def sum_(self, array: Any) -> None:
        array *= self.factor


@pytest.mark.parametrize(("factor", "expected"), [(2.0, [3.0, 1.0]), (1.0, [np.nan, np.nan])])
def test_nothing_waits_for_a_device(factor: float, expected: list[float]) -> None:
    """A gradient that is missing on only one rank makes the result nan there."""
    pytest.importorskip("array_api_strict")
    there = find_backend("array_api_strict", device="device1")
    nowhere, p = (nn.Parameter(there.asarray(np.zeros(2))) for _ in range(2))
    p.add_grad(there.asarray(np.array([6.0, 2.0])))
    value, weight = there.asarray(np.asarray(10.0)), there.asarray(np.asarray(2))
    with assert_no_host_sync():
        value = parallel.reduce_gradients([nowhere, p], Twice(factor), value, weight)
    assert nowhere.grad is None
    np.testing.assert_array_equal(xbp.to_numpy(p.grad), expected)
    assert np.isnan(expected[0]) == np.isnan(float(xbp.to_numpy(value)))


def test_dtypes_on_a_device_come_back_as_they_were() -> None:
    pytest.importorskip("array_api_strict")
    there = find_backend("array_api_strict", device="device1")
    owned = []
    for dtype in ("float64", "float32"):
        p = nn.Parameter(there.asarray(np.zeros(2), dtype=dtype))
        p.add_grad(there.asarray(np.array([6.0, 2.0]), dtype=dtype))
        owned.append(p)
    parallel.reduce_gradients(owned, Twice(), there.asarray(np.asarray(10.0)), 2)
    for p in owned:
        assert p.grad is not None and p.grad.dtype == p.data.dtype
        np.testing.assert_array_equal(xbp.to_numpy(p.grad), [3.0, 1.0])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="no parameters whose gradients"):
        parallel.reduce_gradients([], parallel.group(), np.asarray(1.0))
    pytest.importorskip("array_api_strict")
    elsewhere = nn.Parameter(find_backend("array_api_strict", device="device1").asarray([1.0]))
    with pytest.raises(BackendError, match="reduce_gradients got a parameter on"):
        parallel.reduce_gradients([elsewhere], parallel.group(), np.asarray(1.0))


# --- layers with shares --------------------------------------------------------------------------


def test_batch_norm_refuses_a_single_value_of_all_ranks() -> None:
    layer = nn.BatchNorm1d(2)
    nn.pool_statistics(layer, parallel.group())
    y, backward = layer.forward(np.ones((1, 2), np.float32), training=True)
    with pytest.raises(InputError, match="more than one value a channel in training"):
        backward(y)


def test_inference_asks_no_other_rank() -> None:
    class Refusing(parallel.Alone):
        def sum_(self, array: Any) -> None:
            raise AssertionError

    for tracked in (True, False):
        layer = nn.BatchNorm1d(2, track_running_stats=tracked)
        nn.pool_statistics(layer, Refusing())
        layer(np.arange(6, dtype=np.float32).reshape(3, 2))
