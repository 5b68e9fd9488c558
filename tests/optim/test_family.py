"""Every rule of the table: definition, PyTorch, backends, saving, and the tutorials' mistakes."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray
from optim.rules import (
    ONE_OF_EACH,
    ORACLES,
    RULES,
    WITHOUT_PEER,
    Rule,
    assert_close,
    check_oracle,
    check_variance,
    feed,
    problem,
    trained,
)

import xbp
from xbp import nn, optim
from xbp.backend import dtype_name, find_backend
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync

HERE = xbp.available_backends()
ADAPTIVE = [kind for kind in ORACLES if kind != "SGD"]
FEW = 12
"""Steps of tests that every option of every rule takes; RAdam's rule changes at the sixth."""
WITH_EPS = [kind for kind in ADAPTIVE if kind != "Lion"]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
every_backend = pytest.mark.parametrize("backend", HERE)
one_of_each = pytest.mark.parametrize("rule", ONE_OF_EACH, ids=str)


# --- the formulas --------------------------------------------------------------------------------


@every_rule
def test_a_hundred_steps_equal_the_definition(rule: Rule) -> None:
    check_oracle(rule)


@pytest.mark.parametrize("rule", [r for r in RULES if r.name not in WITHOUT_PEER], ids=str)
def test_a_hundred_steps_equal_pytorchs(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    start, gradients = problem()
    default = torch.get_default_dtype()
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # Muon: in float64, too
    torch.set_default_dtype(torch.float64)  # the dtype of NAdam's product of all μ
    try:
        parameter = torch.nn.Parameter(torch.asarray(start.copy()))
        optimizer = getattr(torch.optim, rule.name)([parameter], **rule.options)
        for gradient in gradients:
            parameter.grad = torch.asarray(gradient)
            optimizer.step()
    finally:
        torch.set_default_dtype(default)
    # PyTorch orders the same operations in another way; rounding alone stays far below this.
    assert_close(trained(rule, start, gradients), parameter.detach().numpy(), 1e-10)


@pytest.mark.parametrize("kind", [kind for kind in ORACLES if kind not in WITHOUT_PEER])
def test_the_defaults_are_pytorchs(kind: str) -> None:
    import inspect

    torch = pytest.importorskip("torch")
    ours = inspect.signature(getattr(optim, kind)).parameters
    theirs = inspect.signature(getattr(torch.optim, kind)).parameters
    for name in list(ours)[1:]:
        if (kind, name) != ("SGD", "lr"):  # without a default here
            assert ours[name].default == theirs[name].default, name


@every_rule
@pytest.mark.parametrize("backend", [name for name in HERE if name != "numpy"])
def test_every_backend_takes_the_same_steps(backend: str, rule: Rule) -> None:
    start, gradients = problem()
    # The same operations in the same order; a library may fuse a multiplication and an addition,
    # which is one rounding of 1e-16 a step, and a centered variance loses two digits.
    expected = trained(rule, start, gradients)
    assert_close(trained(rule, start, gradients, backend), expected, 1e-13)


# --- the step ------------------------------------------------------------------------------------


@every_rule
@every_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_is_in_place_keeps_dtypes_and_waits_for_nothing(
    dtype: str, backend: str, rule: Rule
) -> None:
    place = find_backend(backend)
    data, gradient = (place.asarray(x, dtype=dtype) for x in ([[1.0, 2.5]], [[0.5, -0.5]]))
    parameter = nn.Parameter(data)
    optimizer = rule([parameter])
    parameter.add_grad(gradient)
    optimizer.step()
    arrays = dict(optimizer.state[0])
    before = xbp.to_numpy(data).copy()
    with assert_no_host_sync() if "array_api_strict" in HERE else nullcontext():
        for _ in range(7):  # beyond RAdam's first steps
            optimizer.step()
    assert parameter.data is data
    assert np.all(xbp.to_numpy(data) != before)
    assert parameter.grad is gradient
    assert xbp.to_numpy(gradient).tolist() == [[0.5, -0.5]]
    assert tuple(arrays) == optimizer.state_names()
    assert all(optimizer.state[0][name] is array for name, array in arrays.items())
    assert {dtype_name(array.dtype) for array in (data, *arrays.values())} == {dtype}


@every_rule
@every_backend
def test_shapes_without_axes_and_without_entries_are_parameters_too(
    backend: str, rule: Rule
) -> None:
    start, gradients = problem((1,))
    gradients = gradients[:FEW]
    full = trained(rule, start, gradients)
    single = trained(rule, np.array(start[0]), [np.array(g[0]) for g in gradients], backend)
    assert single.shape == ()
    assert_close(single, full[0], 1e-13)  # vectorised and scalar loops may round differently
    assert trained(rule, start[:0], [g[:0] for g in gradients], backend).shape == (0,)


@one_of_each
def test_a_parameter_that_was_left_alone_takes_its_first_update_later(rule: Rule) -> None:
    """Each parameter has its own count t in 1 - βᵗ, μ_t and lr_decay."""
    late, alone, other = (nn.Parameter(np.array([1.0, 2.0])) for _ in range(3))
    together = rule([other, late])
    for _ in range(3):
        other.add_grad(np.ones(2))
        together.step()
    single = rule([alone])
    for gradient in default_rng(0).normal(size=(4, 2)):
        together.zero_grad()
        late.add_grad(gradient)
        together.step()
        feed(single, gradient)
    assert late.data.tobytes() == alone.data.tobytes()


@every_backend
def test_a_variance_that_rounding_takes_below_zero_counts_as_zero(backend: str) -> None:
    check_variance(backend)


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_an_entry_that_never_has_a_gradient_stays_where_it_is(kind: str) -> None:
    options = {"weight_decay": 0.0} if kind in ("AdamW", "LAMB", "Muon") else {}
    gradients = [np.array([[0.0, g]]) for g in default_rng(0).normal(size=10)]
    assert trained(Rule(kind, options), np.array([[3.0, 3.0]]), gradients)[0, 0] == 3.0


# --- saving --------------------------------------------------------------------------------------


@every_rule
@every_backend
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(backend: str, rule: Rule) -> None:
    start, gradients = problem((3, 2))
    before, after = gradients[:4], gradients[4:FEW]
    place = find_backend(backend)

    def new(data: Any) -> optim.Optimizer:
        return rule([nn.Parameter(place.asarray(data.copy()))])

    whole = new(start)
    for gradient in before:
        feed(whole, gradient)
    halfway = xbp.to_numpy(whole.parameters[0].data).copy(), whole.state_dict()
    for gradient in after:
        feed(whole, gradient)

    resumed = new(halfway[0])
    resumed.load_state_dict(halfway[1])
    for gradient in after:
        feed(resumed, gradient)
    found, expected = resumed.state_dict(), whole.state_dict()
    found["p"], expected["p"] = (xbp.to_numpy(o.parameters[0].data) for o in (resumed, whole))
    assert (
        found.keys()
        == expected.keys()
        == {"steps", "0.count", "p"} | {f"0.{name}" for name in whole.state_names()}
    )
    for name, value in expected.items():
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam", "LAMB"])
def test_adam_and_its_kin_save_mean_and_square_under_their_names(kind: str) -> None:
    optimizer = getattr(optim, kind)([nn.Parameter(np.zeros(1))], betas=(0.75, 0.5))
    feed(optimizer, np.array([3.0]))
    state = optimizer.state_dict()
    assert (state["0.m"], state["0.v"]) == (0.75, 4.5)


def test_lambs_ratio_is_one_where_a_length_is_zero() -> None:
    """Zeros move as with Adam; where the step is zero, nothing moves, and nothing is nan."""
    p, q = nn.Parameter(np.zeros(2)), nn.Parameter(np.array([3.0, 4.0]))
    optimizer = optim.LAMB([p, q], lr=0.25, eps=1e-30, weight_decay=0.0)
    p.add_grad(np.array([3.0, -4.0]))
    q.add_grad(np.zeros(2))
    optimizer.step()
    np.testing.assert_allclose(p.data, [-0.25, 0.25], rtol=1e-14)  # a few roundings
    assert q.data.tolist() == [3.0, 4.0]


def test_adamax_saves_mean_and_maximum_under_their_names() -> None:
    optimizer = optim.Adamax([nn.Parameter(np.zeros(1))], betas=(0.75, 0.5), eps=0.0)
    feed(optimizer, np.array([3.0]))
    state = optimizer.state_dict()
    assert (state["0.m"], state["0.u"]) == (0.75, 3.0)


def test_adadelta_saves_each_average_under_its_name() -> None:
    optimizer = optim.Adadelta([nn.Parameter(np.zeros(1))], rho=0.75, eps=0.01)
    feed(optimizer, np.array([3.0]))
    state = optimizer.state_dict()
    assert state["0.square"] == 0.25 * 9
    # δ² = g² (0 + ε) / (s + ε), with a few roundings.
    assert state["0.delta"] == pytest.approx(0.25 * 9 * 0.01 / (0.25 * 9 + 0.01), rel=1e-14)


@pytest.mark.parametrize(
    ("saved", "loading"),
    [
        (Rule("Adam", {"amsgrad": True}), Rule("Adam", {})),
        (Rule("Adam", {}), Rule("Adam", {"amsgrad": True})),
        (Rule("RMSprop", {"centered": True}), Rule("RMSprop", {"momentum": 0.9})),
        (Rule("Adagrad", {}), Rule("Adadelta", {})),
        (Rule("Adamax", {}), Rule("NAdam", {})),
    ],
    ids=str,
)
def test_the_state_of_other_options_is_refused(saved: Rule, loading: Rule) -> None:
    source, target = (rule([nn.Parameter(np.array([1.0]))]) for rule in (saved, loading))
    feed(source, np.array([1.0]))
    with pytest.raises(InputError, match=f"does not fit this {loading.name}: '0."):
        target.load_state_dict(source.state_dict())
    assert target.state_dict() == {"steps": 0, "0.count": 0}


# --- what is refused -----------------------------------------------------------------------------

NAN = float("nan")
BAD: list[tuple[str, list[str], list[Any]]] = [
    ("lr", ADAPTIVE, [-0.1, NAN, "0.1", None]),
    ("eps", WITH_EPS, [-1e-8, NAN, "small"]),
    ("weight_decay", ADAPTIVE, [-0.1, float("inf"), True]),
    (
        "betas",
        ["AdamW", "Adamax", "NAdam", "RAdam", "Lion", "LAMB"],
        [(0.9, 1.0), (-0.1, 0.9), (0.9,), 0.9, None],
    ),
    ("lr_decay", ["Adagrad"], [-0.1, "slow"]),
    ("initial_accumulator_value", ["Adagrad"], [-0.1, NAN]),
    ("alpha", ["RMSprop"], [-0.1, 1.1, None]),
    ("momentum", ["RMSprop"], [-0.1, "0.9"]),
    ("rho", ["Adadelta"], [-0.1, 1.1, [0.9]]),
    ("momentum_decay", ["NAdam"], [-0.004, NAN]),
    ("momentum", ["Muon"], [-0.1, 1.1, "0.9"]),
    ("ns_coefficients", ["Muon"], [(1, 2), 3.0, None]),
    ("ns_steps", ["Muon"], [0, 2.5]),
]


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Rule(kind, {name: bad}), name)
        for name, kinds, bads in BAD
        for kind in kinds
        for bad in bads
    ],
    ids=str,
)
def test_a_hyperparameter_out_of_range_is_one_sentence(rule: Rule, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} must be ") as caught:
        rule([nn.Parameter(np.array([[1.0]]))])
    assert "\n" not in str(caught.value)


# --- mistakes of the tutorials -------------------------------------------------------------------


def test_adams_momentum_decays_by_beta_1() -> None:
    """With g = 1, -1: m̂ = 1, -1/3 and v̂ = 1, 1. Decayed by β₂, the second m̂ would be -1/7."""
    rule = Rule("Adam", {"lr": 0.3, "betas": (0.5, 0.75), "eps": 0.0})
    found = trained(rule, np.zeros(1), [np.ones(1), -np.ones(1)])
    np.testing.assert_allclose(found, [-0.3 + 0.1], rtol=1e-14)  # a few roundings


def test_adamax_has_a_norm_for_each_entry() -> None:
    """With one norm for the whole matrix, all but the largest entry would hardly move."""
    scales = 10.0 ** np.arange(-3.0, 3.0).reshape(2, 3)
    rule = Rule("Adamax", {"lr": 0.1, "betas": (0.9, 1 - 2.0**-10), "eps": 0.0})
    found = trained(rule, np.zeros((2, 3)), [scales] * 5)
    np.testing.assert_allclose(found, np.full((2, 3), -0.5), rtol=1e-14)  # a few roundings


class Watch:
    """The loss ½‖y - t‖², with a record of its targets."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def __call__(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        self.seen.append(target[:, 0].tolist())
        error = prediction - target
        return 0.5 * np.sum(error * error), error


def regression(rule: Rule, n: int = 22) -> tuple[xbp.Trainer, Watch, NDArray[Any]]:
    """A trainer of a straight line, and n samples with distinct targets."""
    model = nn.Sequential(nn.Linear(1, 1, dtype="float64", rng=0))
    watch = Watch()
    x = np.linspace(-1, 1, n)[:, None]
    return xbp.Trainer(model, watch, rule(model.parameters()), rng=7), watch, x


@one_of_each
def test_the_state_lives_on_from_epoch_to_epoch(rule: Rule) -> None:
    """Two epochs of fit are one explicit loop; with the state reset they are not."""
    # These make steps of constant length for a single number while its sign does not change, in
    # any state: the state itself must be compared.
    tells = rule.name not in ("Lion", "LAMB", "Muon")
    trainer, _, x = regression(rule)
    trainer.fit(x, 3 * x + 1, epochs=2, batch_size=5)
    results = {}
    for reset in (False, True):
        other, loss, _ = regression(rule)
        model, optimizer = other.model, other.optimizer
        for epoch in range(2):
            if reset:
                optimizer = rule(model.parameters())
            order = xbp.random.permutation(7, epoch, len(x))
            for start in range(0, len(x), 5):
                batch = x[order[start : start + 5]]
                prediction, backward = model.forward(batch, training=True)
                backward(loss(prediction, 3 * batch + 1)[1])
                optimizer.step()
                optimizer.zero_grad()
        results[reset] = model.state_dict() if tells else optimizer.state_dict()
    found = trainer.model.state_dict() if tells else trainer.optimizer.state_dict()
    assert trainer.optimizer.counts == [10, 10]
    assert all(np.array_equal(found[name], value) for name, value in results[False].items())
    differ = [
        name for name, value in results[True].items() if not np.array_equal(found[name], value)
    ]
    assert differ == list(found) or (not tells and len(differ) > len(found) / 2)


def test_an_epoch_takes_every_sample_once() -> None:
    """Batches are slices of one shuffle, the last one smaller; none is drawn with replacement."""
    trainer, watch, x = regression(Rule("Adam", {}))
    trainer.fit(x, x, epochs=3, batch_size=5)
    assert [len(batch) for batch in watch.seen] == [5, 5, 5, 5, 2] * 3
    epochs = [list(itertools.chain(*watch.seen[i : i + 5])) for i in (0, 5, 10)]
    assert all(sorted(epoch) == x[:, 0].tolist() for epoch in epochs)
    assert all(a != b for a, b in itertools.combinations([*epochs, x[:, 0].tolist()], 2))


# --- what the options are for --------------------------------------------------------------------


def test_the_whole_family_goes_down_a_badly_scaled_valley() -> None:
    """f = ½ Σ cᵢ pᵢ², c from 0.01 to 100: dividing by a scale, 300 steps do what SGD's cannot."""
    scales = 10.0 ** np.arange(-2.0, 3.0)
    rates = {"SGD": 0.019, "Adagrad": 0.3, "RMSprop": 0.01, "Adadelta": 3.0, "RAdam": 0.03}
    left = {}
    for kind in ORACLES:
        if kind == "Muon":
            continue  # it needs a matrix, and has one scale for all directions
        parameter = nn.Parameter(np.ones(5))
        optimizer = getattr(optim, kind)([parameter], lr=rates.get(kind, 0.05))
        for _ in range(300):
            feed(optimizer, scales * parameter.data)
        left[kind] = np.abs(parameter.data).max()
    assert left.pop("SGD") > 0.9  # and above a rate of 0.02 it diverges
    assert max(left.values()) < 0.05, left
