"""Parameters that are updated together change as they would one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from twin import twin

import xbp.accelerators
from xbp import nn, optim, primitives
from xbp.backend import Array, Namespace, array_namespace, find_backend
from xbp.errors import InputError
from xbp.primitives.dispatch import update
from xbp.testing.cases import RULES, Rule

SHAPES = [("float64", (3, 4)), ("float32", (70, 60)), ("float64", ()), ("float32", (5,))] * 2


def parameters(backend: xbp.Backend) -> list[nn.Parameter]:
    rng = np.random.default_rng(0)
    return [
        nn.Parameter(backend.asarray(rng.normal(size=shape), dtype=dtype))
        for dtype, shape in SHAPES
    ]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_bit_for_bit(rule: Rule, backend: xbp.Backend) -> None:
    together, alone = parameters(backend), parameters(backend)
    joint, single = rule(together), [rule([parameter]) for parameter in alone]
    rng = np.random.default_rng(1)
    for step in range(8):  # RAdam's rule changes at the sixth step
        for index, (parameter, same) in enumerate(zip(together, alone, strict=True)):
            # Parameters without a gradient in some steps have lower counts.
            if (step, index) not in ((0, 1), (3, 2), (3, 6)):
                dtype, shape = SHAPES[index]
                gradient = rng.normal(size=shape)
                for one in (parameter, same):
                    one.add_grad(backend.asarray(gradient.copy(), dtype=dtype))
        joint.step()
        joint.zero_grad()
        for optimizer in single:
            optimizer.step()
            optimizer.zero_grad()
    for index, optimizer in enumerate(single):
        a, b = (xbp.to_numpy(o.data) for o in (together[index], alone[index]))
        assert a.dtype == b.dtype == SHAPES[index][0]
        assert a.tobytes() == b.tobytes()
        assert joint.counts[index] == optimizer.counts[0]
        for name, state in optimizer.state[0].items():
            expected = xbp.to_numpy(state).tobytes()
            assert xbp.to_numpy(joint.state[index][name]).tobytes() == expected


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_bit_for_bit_where_devices_have_no_hash(rule: Rule) -> None:
    with twin(), xbp.accelerators.disabled():
        backend, host = find_backend("twin"), find_backend("numpy")
        there, here = parameters(backend), parameters(host)
        optimizers = rule(there), rule(here)
        for _ in range(3):
            for place, own in ((backend, there), (host, here)):
                for parameter in own:
                    parameter.add_grad(
                        place.asarray(np.ones(parameter.shape)).astype(parameter.data.dtype)
                    )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for a, b in zip(there, here, strict=True):
            assert type(a.data) is not type(b.data)
            assert xbp.to_numpy(a.data).tobytes() == b.data.tobytes()


def test_parameters_of_one_device_are_updated_at_once() -> None:
    with twin():
        backends = [find_backend("twin", device=number) for number in (0, 1, 0)]
        data = [nn.Parameter(backend.asarray([1.0])) for backend in backends]
        with data[0].data.device:
            assert at_once(optim.Adam([data[0], data[2]])) == [2]


class HalfAdam(optim.Adam):
    def mean(self, m: Array, g: Array, *rate: Any) -> tuple[Any, Array]:
        return rate[0], m / 2


class Plain(optim.SGD):
    def update(self, xp: Namespace, p: Array, g: Array, state: Any, rate: Any, share: Any) -> None:
        p += rate * g


@pytest.mark.parametrize("kind", [HalfAdam, Plain])
def test_a_rule_of_ones_own_is_given_arrays(kind: Any) -> None:
    own = parameters(find_backend("numpy"))[:3:2]
    before = [parameter.data.copy() for parameter in own]
    optimizer = kind(own, lr=0.5)
    for parameter in own:
        xp = array_namespace(parameter.data)
        parameter.add_grad(xp.ones_like(parameter.data))
    optimizer.step()
    for parameter, old in zip(own, before, strict=True):
        change = 0.25 if kind is HalfAdam else 0.5
        assert np.abs(old - parameter.data - change).max() < 1e-8  # Adam's ε


def at_once(optimizer: optim.Optimizer) -> list[int]:
    """The number of parameters in each call of the rule."""
    calls = []
    update = optimizer.update

    def noted(xp: Any, p: Any, *others: Any) -> None:
        calls.append(len(p) if isinstance(p, list) else 0)
        update(xp, p, *others)

    optimizer.update = noted  # type: ignore[method-assign]
    for parameter in optimizer.parameters:
        xp = array_namespace(parameter.data)
        parameter.add_grad(xp.ones_like(parameter.data))
    optimizer.step()
    return calls


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda p: optim.SGD(p, lr=0.1), [4, 4]),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), [4, 4]),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), [4, 4]),
        (optim.Adam, [4, 4]),
        (optim.AdamW, [4, 4]),
        (optim.RAdam, [4, 4]),
        (lambda p: optim.Adam(p, amsgrad=True), [0] * 8),
        (optim.NAdam, [0] * 8),
        (optim.Adamax, [0] * 8),
        (optim.Adagrad, [0] * 8),
    ],
)
def test_which_rules_are_applied_to_all_of_a_dtype_at_once(make: Any, calls: list[int]) -> None:
    assert at_once(make(parameters(find_backend("numpy")))) == calls


def test_lists_with_partners_and_without() -> None:
    a, b = [np.ones(3), np.ones((2, 5000))], [np.ones(3), np.full((2, 5000), 2.0)]
    assert primitives.rescale(a, 3.0) is None
    assert primitives.accumulate(a, 2.0, b, 0.5) is None
    assert primitives.accumulate(a, 1.0, b) is None
    assert primitives.accumulate(a, 1.0, b, 2.0) is None
    assert primitives.add_scaled(a, np.asarray(10.0), b) is None
    assert [np.unique(array).tolist() for array in a] == [[19.5], [33.0]]


def test_a_primitive_of_ones_own() -> None:
    @update
    def double(p: Array, times: int) -> None:
        p *= 2**times

    a, b = np.ones(2), np.ones(3)
    double(a, 1)
    double([a, b], 2)
    assert a.tolist() == [8.0, 8.0]
    assert b.tolist() == [4.0, 4.0, 4.0]


BETWEEN: dict[str, Any] = {
    "nothing": lambda o: None,
    "a new array": lambda o: setattr(o.parameters[1], "data", o.parameters[1].data + 1),
    "a new parameter": lambda o: o.parameters.__setitem__(1, nn.Parameter(np.ones((5, 6)))),
    "a new parameter of the same array": lambda o: o.parameters.__setitem__(
        1, nn.Parameter(o.parameters[1].data)
    ),
    "a new state": lambda o: o.state[1].update(m=np.ones((5, 6))),
    "no state": lambda o: o.state.__setitem__(1, {}),
    "a loaded state": lambda o: o.load_state_dict(o.state_dict()),
    "another count": lambda o: o.counts.__setitem__(1, 7),
    "a frozen parameter": lambda o: setattr(o.parameters[1], "trainable", False),
    "another rate": lambda o: setattr(o, "lr", 0.5),
    "another option": lambda o: o.param_groups[0].update(weight_decay=0.1),
    "one by one": lambda o: setattr(o, "together", False),
    "another rule": lambda o: (
        o.param_groups[0].update(amsgrad=True),
        [state.update(v_max=np.zeros_like(state["v"])) for state in o.state],
    ),
    "a group": lambda o: o.add_param_group({"params": nn.Parameter(np.ones(4))}),
    "float32": lambda o: [
        o.parameters[1].astype("float32"),
        o.state[1].update({name: array.astype("float32") for name, array in o.state[1].items()}),
    ],
}


class Switched(optim.Adam):
    """Adam, which may be told to update its parameters one by one."""

    together = True

    def multi_tensor(self) -> bool:
        return self.together and super().multi_tensor()


@pytest.mark.parametrize("what", BETWEEN)
def test_what_a_step_remembers_is_noticed_to_be_out_of_date(what: str) -> None:
    """An optimizer that forgets is the oracle."""
    found = []
    for forgetful in (False, True):
        optimizer = Switched([nn.Parameter(np.full((5, 6), float(k))) for k in range(3)], lr=0.1)
        for step in range(5):
            if step == 2:
                BETWEEN[what](optimizer)
            if forgetful:
                optimizer._joints.clear()
            for k, parameter in enumerate(optimizer.parameters):
                parameter.add_grad(np.cos(step + k + parameter.data))
            versions = [parameter.version for parameter in optimizer.parameters]
            optimizer.step()
            changed = [p.version > v for p, v in zip(optimizer.parameters, versions, strict=True)]
            assert changed == [p.trainable for p in optimizer.parameters]
            optimizer.zero_grad()
        forgotten = ("another rule", "a frozen parameter", "float32")
        if what not in ("another count", "one by one"):
            assert bool(optimizer._joints) == (what not in forgotten)
        found.append([optimizer.counts, *(p.data.tobytes() for p in optimizer.parameters)])
    assert found[0] == found[1]


def test_arrays_of_another_place_are_refused_after_a_step_that_remembers() -> None:
    optimizer = optim.Adam([nn.Parameter(np.ones(3)), nn.Parameter(np.ones(2))])
    for _ in range(2):
        for parameter in optimizer.parameters:
            parameter.add_grad(np.ones_like(parameter.data))
        optimizer.step()
    optimizer.parameters[1].astype("float32")
    before = optimizer.parameters[0].data.copy()
    with pytest.raises(InputError, match="its state in float64, but parameter 1 is now float32"):
        optimizer.step()
    assert optimizer.parameters[0].data.tobytes() == before.tobytes()
