"""Parameter groups: PyTorch's semantics, saving, captured steps, invalid groups."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from optim.rules import ORACLES, RULES, WITHOUT_PEER

import xbp
from xbp import nn, optim
from xbp.errors import DataError, InputError
from xbp.testing import emulated_graphs
from xbp.training import Checkpoints, LambdaCallback, LearningRateScheduler
from xbp.training.capture import Phase, recordings_of
from xbp.training.files.tensors import TensorFile, write_tensors

SHAPES: list[tuple[int, ...]] = [(3, 4), (4,), (2, 2), ()]
MATRICES: list[tuple[int, ...]] = [(3, 4), (4, 1), (2, 2), (3, 2)]
OTHERS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 0.3},
    "decay": {"weight_decay": 0.2},
    "both": {"lr": 0.02, "weight_decay": 0.1},
}


def parameters(kind: str = "") -> list[nn.Parameter]:
    rng, shapes = default_rng(0), MATRICES if kind == "Muon" else SHAPES
    return [nn.Parameter(np.asarray(rng.normal(size=shape))) for shape in shapes]


def step(optimizers: list[optim.Optimizer], rng: np.random.Generator) -> None:
    """One step of all optimizers, with equal gradients for their parameters in order."""
    everyone = [[*optimizer.parameters] for optimizer in optimizers]
    gradients = [rng.normal(size=p.shape) for p in everyone[0]]
    for held, optimizer in zip(everyone, optimizers, strict=True):
        for parameter, gradient in zip(held, gradients, strict=True):
            parameter.add_grad(np.asarray(gradient))
        optimizer.step()
        optimizer.zero_grad()


def bits(optimizer: optim.Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    state |= {f"p{i}": p.data for i, p in enumerate(optimizer.parameters)}
    return {name: (np.shape(a), np.asarray(a).tobytes()) for name, a in state.items()}


# --- what groups are ------------------------------------------------------------------------------


@pytest.mark.parametrize("own", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("kind", [kind for kind in ORACLES if kind not in WITHOUT_PEER])
def test_groups_are_pytorchs(
    kind: str, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # Muon: in float64, too
    ours = parameters(kind)
    theirs = [torch.nn.Parameter(torch.asarray(p.data.copy())) for p in ours]
    options = {"lr": 0.05, "weight_decay": 0.01}
    make, peer = getattr(optim, kind), getattr(torch.optim, kind)
    optimizer = make([{"params": ours[:1]}, {"params": ours[1:], **own}], **options)
    twin = peer([{"params": theirs[:1]}, {"params": theirs[1:], **own}], **options)
    rng = default_rng(1)
    for _ in range(100):
        for p, q in zip(ours, theirs, strict=True):
            gradient = rng.normal(size=p.shape)
            p.add_grad(np.asarray(gradient))
            q.grad = torch.asarray(gradient)
        optimizer.step()
        optimizer.zero_grad()
        twin.step()
    # NAdam's product of all μ is a float32 in PyTorch, with an error of 1e-8.
    tolerance = 1e-6 if kind == "NAdam" else 1e-10
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ORACLES)
def test_a_group_is_an_optimizer_of_its_own(kind: str) -> None:
    """Each option of the table that differs from the default, bit for bit."""
    for own in [rule.options for rule in RULES if rule.name == kind]:
        common = {"lr": 0.05}
        together, alone = parameters(kind), parameters(kind)
        make = getattr(optim, kind)
        whole = make([{"params": together[:2], **own}, {"params": together[2]}], **common)
        whole.add_param_group({"params": together[3:]})
        parts = [make(alone[:2], **(common | own)), make(alone[2:], **common)]
        for seed in range(8):  # RAdam's rule changes at the sixth step
            rng = default_rng(seed)
            for p, q in zip(together, alone, strict=True):
                gradient = np.asarray(rng.normal(size=p.shape))
                p.add_grad(gradient)
                q.add_grad(gradient.copy())
            for optimizer in (whole, *parts):
                optimizer.step()
                optimizer.zero_grad()
        for p, q in zip(together, alone, strict=True):
            assert p.data.tobytes() == q.data.tobytes(), own
        assert whole.state[0].keys() == parts[0].state[0].keys()


def test_groups_of_nadam_share_no_product() -> None:
    """The product of all μ, which is kept for each pair of options that it depends on."""
    together, alone = parameters("NAdam"), parameters("NAdam")
    options = [{"betas": (0.9, 0.99)}, {"betas": (0.7, 0.99)}, {"momentum_decay": 0.1}]
    places = [slice(0, 1), slice(1, 2), slice(2, None)]
    pairs = list(zip(places, options, strict=True))
    whole = optim.NAdam([{"params": together[i], **own} for i, own in pairs], lr=0.05)
    parts = [optim.NAdam(alone[i], lr=0.05, **own) for i, own in pairs]
    rng = default_rng(0)
    for _ in range(4):
        for p, q in zip(together, alone, strict=True):
            gradient = np.asarray(rng.normal(size=p.shape))
            p.add_grad(gradient)
            q.add_grad(gradient)
        for optimizer in (whole, *parts):
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(together, alone, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_a_group_with_another_rule_is_an_optimizer_of_that_class() -> None:
    together, alone = parameters(), parameters()
    own = {"rule": optim.AdamW, "betas": (0.8, 0.9), "lr": 0.01}
    groups = [{"params": together[:2]}, {"params": together[2:], **own}]
    whole = optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.3)
    first = optim.SGD(alone[:2], lr=0.1, momentum=0.9, weight_decay=0.3)
    second = optim.AdamW(alone[2:], lr=0.01, betas=(0.8, 0.9))
    rng = default_rng(3)
    for _ in range(4):
        for p, q in zip(together, alone, strict=True):
            gradient = np.asarray(rng.normal(size=p.shape))
            p.add_grad(gradient)
            q.add_grad(gradient.copy())
        for optimizer in (whole, first, second):
            optimizer.step()
            optimizer.zero_grad()
    assert all(p.data.tobytes() == q.data.tobytes() for p, q in zip(together, alone, strict=True))
    assert [sorted(state) for state in whole.state] == [["velocity"]] * 2 + [["m", "v"]] * 2
    assert whole.param_groups[1]["weight_decay"] == 0.01  # AdamW's
    assert "rule': 'AdamW'" in repr(whole)
    resumed = optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.3)
    resumed.load_state_dict(whole.state_dict())
    assert bits(resumed) == bits(whole)


def test_a_rule_without_a_default_rate_takes_the_optimizers() -> None:
    a, b = parameters()[:2]
    optimizer = optim.Adam([{"params": a}, {"params": b, "rule": optim.SGD}], lr=0.3)
    assert optimizer.rates_at(0) == [0.3, 0.3]


def test_a_rule_without_a_rate_keeps_its_own() -> None:
    class Halving(optim.SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, 0.5)

    a, b = parameters()[:2]
    optimizer = optim.SGD([{"params": a}, {"params": b, "rule": Halving}], lr=0.3)
    assert optimizer.rates_at(0) == [0.3, 0.5]


def test_a_rule_has_no_groups() -> None:
    a, b = parameters()[:2]
    optimizer = optim.SGD([{"params": a}, {"params": b}], lr=0.3)
    assert [len(rule.param_groups) for rule, _ in optimizer.rules()] == [1, 1]


def test_a_schedule_for_all_and_one_of_a_groups_own() -> None:
    a, b, c = parameters()[:3]
    halved = optim.StepLR(1.0, 1, gamma=0.5)
    optimizer = optim.SGD(
        [{"params": a}, {"params": b, "lr": 0.25}, {"params": c, "lr": halved}],
        lr=optim.StepLR(8.0, 1, gamma=0.5),
    )
    assert [optimizer.rates_at(i) for i in range(3)] == [
        [8.0, 0.25, 1.0],
        [4.0, 0.25, 0.5],
        [2.0, 0.25, 0.25],
    ]
    optimizer.lr = 3.0
    assert optimizer.rates_at(0) == [3.0, 0.25, 1.0]
    assert optimizer.lr == 3.0


def test_a_rate_that_fails_changes_nothing() -> None:
    def failing(at: int) -> float:
        return 0.1 if at == 0 else float("nan")

    a, b = parameters()[:2]
    optimizer = optim.SGD([{"params": a}, {"params": b, "lr": failing}], lr=0.1, momentum=0.9)
    step([optimizer], default_rng(0))
    before = bits(optimizer)
    with pytest.raises(InputError, match="the learning rate of step 1 must be"):
        step([optimizer], default_rng(1))
    assert bits(optimizer) == before


# --- as PyTorch's dicts ---------------------------------------------------------------------------


def test_param_groups_are_read_and_set() -> None:
    a, b = parameters()[:2]
    groups = [{"params": a}, {"params": [b], "weight_decay": 0}]
    optimizer = optim.AdamW(groups, lr=0.1, betas=(0.5, 0.6))
    first, second = optimizer.param_groups
    assert second["params"] == [b]
    assert dict(second) | {"params": 0} == {
        "params": 0, "lr": 0.1, "betas": (0.5, 0.6), "eps": 1e-8, "weight_decay": 0.0,
        "amsgrad": False,
    }  # fmt: skip
    assert len(second) == 6
    assert repr(first) == (
        "<1 parameters, lr=0.1, betas=(0.5, 0.6), eps=1e-08, weight_decay=0.01, amsgrad=False>"
    )
    first["betas"] = [0.7, 0.8]
    second["lr"] *= 2
    assert (first["betas"], second["betas"]) == ((0.7, 0.8), (0.5, 0.6))
    assert optimizer.rates_at(0) == [0.1, 0.2]
    optimizer.lr = 5.0
    assert optimizer.rates_at(0) == [5.0, 0.2]
    del second["lr"]
    assert optimizer.rates_at(0) == [5.0, 5.0]
    for missing in ("lr", "momentum"):
        with pytest.raises(KeyError):
            del second[missing]
    with pytest.raises(KeyError):
        second["momentum"]
    shown = "lr=5.0, weight_decay=0.01"
    assert shown in repr(optimizer)
    assert "{'params': 1, 'weight_decay': 0.0}]" in repr(optimizer)


def test_the_group_of_all_parameters_is_the_optimizer() -> None:
    optimizer = optim.SGD(parameters(), lr=0.1)
    (group,) = optimizer.param_groups
    assert group["params"] == optimizer.parameters
    group["lr"], group["momentum"] = 0.5, 0.9
    assert (optimizer.lr, optimizer.momentum) == (0.5, 0.9)
    optimizer.lr = 0.25
    assert group["lr"] == 0.25
    assert optimizer.own_rates() == []
    with pytest.raises(KeyError):
        del group["lr"]


def test_an_option_beside_those_of_the_optimizer() -> None:
    """nesterov needs a momentum, possibly the optimizer's."""
    a, b = parameters()[:2]
    groups = [{"params": a}, {"params": b, "nesterov": True}]
    optimizer = optim.SGD(groups, 0.1, 0.9)
    assert [rule.nesterov for rule, _ in optimizer.rules()] == [False, True]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"^nesterov needs a momentum above 0"):
        optimizer.param_groups[1]["momentum"] = 0.0
    with pytest.raises(InputError, match=r"^parameter group 1: nesterov needs"):
        optim.SGD([{"params": a}, {"params": b, "momentum": 0}], 0.1, 0.9, nesterov=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_groups_of_its_own(copied: Any) -> None:
    a, b = parameters()[:2]
    rule = {"rule": optim.Adam}
    optimizer = optim.SGD([{"params": a, "lr": 0.5}, {"params": b, **rule}], lr=0.1, momentum=0.9)
    other = copied(optimizer)
    for _ in range(3):
        step([optimizer, other], default_rng(0))
    assert bits(optimizer) == bits(other)
    other.param_groups[0]["lr"] = 0.25
    assert (optimizer.rates_at(0), other.rates_at(0)) == ([0.5, 0.001], [0.25, 0.001])


class OfModel(optim.SGD):
    """An optimizer whose constructor takes a model."""

    def __init__(self, model: nn.Layer, lr: float = 0.1) -> None:
        super().__init__(optim.decay_groups(model, weight_decay=0.5), lr)


class Scaled(optim.Optimizer):
    """p ← p - η c g, with an option and a rate without defaults."""

    def __init__(self, parameters: Any, lr: Any, factor: float, lost: int = 0) -> None:
        super().__init__(list(parameters), lr)
        self.factor = factor

    def update(self, xp: Any, p: Any, g: Any, state: Any, lr: float, t: int) -> None:
        p -= lr * self.factor * g


def test_optimizers_of_ones_own_have_groups() -> None:
    model = nn.Linear(2, 3, rng=0)
    for optimizer in (OfModel(model), OfModel(model=model)):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
        optimizer.param_groups[0]["momentum"] = 0.9
    a, b = (nn.Parameter(np.zeros(1)) for _ in range(2))
    scaled = Scaled([{"params": a}, {"params": b, "factor": 3.0}], 0.5, factor=2.0)
    for p in (a, b):
        p.add_grad(np.ones(1))
    scaled.step()
    assert (a.data.item(), b.data.item()) == (-1.0, -1.5)
    with pytest.raises(InputError, match="Scaled has no attribute 'lost' in which it keeps"):
        Scaled([{"params": a, "lost": 1}], 0.5, factor=2.0)


# --- decay_groups ---------------------------------------------------------------------------------


def test_no_decay_for_biases_in_one_line() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.PReLU(2), nn.Flatten(), nn.Linear(8, 2))
    groups = optim.decay_groups(model, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [p.data.ndim for p in groups[0]["params"]] == [4, 2]
    assert [p.data.ndim for p in groups[1]["params"]] == [1, 1, 1]
    norms = nn.Sequential(nn.LayerNorm((2, 3)), nn.BatchNorm2d(2), nn.Linear(3, 3, bias=False))
    assert [len(group["params"]) for group in optim.decay_groups(norms, 0.1)] == [1, 4]
    only = optim.decay_groups(nn.PReLU(), weight_decay=0.1)
    assert [group["weight_decay"] for group in only] == [0.0]
    with pytest.raises(InputError, match=r"decay_groups takes a model, an nn\.Layer, got a list"):
        optim.decay_groups(model.parameters(), 0.1)  # type: ignore[arg-type]


# --- saving ---------------------------------------------------------------------------------------


def test_positions_are_counted_across_groups() -> None:
    together, alone = parameters(), parameters()
    groups = [{"params": together[:1], "lr": 0.2}, {"params": together[1:]}]
    grouped, plain = optim.Adam(groups, lr=0.1), optim.Adam(alone, lr=0.1)
    for _ in range(3):
        step([grouped, plain], default_rng(0))
    assert list(grouped.state_dict()) == list(plain.state_dict())
    resumed = optim.Adam([{"params": together[:3]}, {"params": together[3], "lr": 9.0}])
    resumed.load_state_dict(plain.state_dict())
    assert resumed.counts == [3] * 4


# --- training -------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4, rng=0), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 6, rng=1))


def data() -> tuple[Any, Any]:
    return default_rng(5).normal(size=(9, 3)).astype("float32"), np.arange(9) % 6


def groups_of(model: nn.Sequential) -> list[dict[str, Any]]:
    first, last = model.layers[0].parameters(), model.layers[3].parameters()
    return [
        {"params": first, "lr": optim.OneCycleLR(0.1, 10)},
        {"params": last[0], "weight_decay": 0.1},
        {"params": last[1:], "rule": optim.AdamW},
    ]


def trainer(capture: bool | None = False) -> xbp.Trainer:
    model = network()
    optimizer = optim.SGD(groups_of(model), lr=0.05, momentum=0.9, nesterov=True)
    return xbp.Trainer(
        model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=7, capture=capture
    )


def outcome(trained: xbp.Trainer) -> Any:
    state = {**trained.model.state_dict(), **trained.optimizer.state_dict()}
    rows = {name: (np.shape(a), np.asarray(a).tobytes()) for name, a in state.items()}
    return rows, [{k: str(v) for k, v in r.items()} for r in trained.history.records]


def changing(at: int, change: Any) -> LambdaCallback:
    def on_step_end(training: Any, number: int) -> None:
        if training.optimizer.steps == at:
            change(training.optimizer)

    return LambdaCallback(on_step_end=on_step_end)


def set_option(name: str, value: Any, group: int = 1) -> Any:
    return lambda optimizer: optimizer.param_groups[group].__setitem__(name, value)


CHANGES: dict[str, Any] = {
    "none": lambda optimizer: None,
    "lr": set_option("lr", 0.01),
    "lr of all": lambda optimizer: setattr(optimizer, "lr", 0.01),
    "decay": set_option("weight_decay", 0.4),
    "eps of another rule": set_option("eps", 0.1, group=2),
    "lr of another rule": set_option("lr", 0.1, group=2),
    "schedule": set_option("lr", optim.StepLR(0.1, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_groups_in_captured_steps(backend: str, name: str) -> None:
    """Changing an option between two steps gives equal bits too."""
    if backend not in xbp.available_backends():
        pytest.skip(f"no {backend} here")
    with xbp.use_backend(backend), emulated_graphs():
        found = []
        for capture in (False, True):
            one = trainer(capture)
            one.fit(*data(), epochs=2, batch_size=2, callbacks=[changing(4, CHANGES[name])])
            found.append(outcome(one))
            if capture:
                recordings = recordings_of(one._stepper)
                assert recordings is not None
                assert recordings.by_size[2].phase is Phase.REPLAY
    assert found[0] == found[1]


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_a_group_that_is_added_between_two_captured_fits(backend: str) -> None:
    if backend not in xbp.available_backends():
        pytest.skip(f"no {backend} here")
    with xbp.use_backend(backend), emulated_graphs():
        found = []
        for capture in (False, True):
            model = network()
            optimizer = optim.Adam(model.layers[0].parameters(), lr=0.05)
            with pytest.warns(UserWarning, match="the optimizer lacks 2"):
                one = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=7, capture=capture)
            one.fit(*data(), epochs=2, batch_size=3)
            last = {"params": model.layers[3].parameters(), "rule": optim.SGD, "lr": 0.5}
            optimizer.add_param_group(last)
            one.fit(*data(), epochs=2, batch_size=3)
            found.append(outcome(one))
        assert optimizer.counts == [12, 12, 6, 6]
    assert found[0] == found[1]


def test_the_rate_of_a_record_is_the_first_groups() -> None:
    one = trainer()
    history = one.fit(*data(), epochs=1, batch_size=2)
    assert history["lr"] == [optim.OneCycleLR(0.1, 10)(4)]


@pytest.mark.parametrize("name", ["none", "lr", "lr of another rule"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """The rates of groups are part of a checkpoint."""

    def run(stop_after: int = 0, resume: bool = False) -> Any:
        def stop(training: Any, number: int) -> None:
            if training.optimizer.steps == stop_after:
                raise KeyboardInterrupt

        one = trainer()
        callbacks = [changing(3, CHANGES[name]), Checkpoints(tmp_path, every=1)]
        callbacks.append(LambdaCallback(on_step_end=stop))
        one.fit(*data(), 2, batch_size=2, callbacks=callbacks, resume=tmp_path if resume else None)
        return outcome(one)

    with pytest.raises(KeyboardInterrupt):
        run(stop_after=7)
    resumed = run(resume=True)
    shutil.rmtree(tmp_path)
    assert run() == resumed


@pytest.mark.parametrize(
    ("option", "value"), [("weight_decay", 0.3), ("lr", 0.3), ("rule", optim.Adam)]
)
def test_a_run_with_other_groups_is_another_run(option: str, value: Any, tmp_path: Path) -> None:
    trainer().fit(*data(), epochs=1, batch_size=2, callbacks=[Checkpoints(tmp_path)])
    model = network()
    groups = groups_of(model)
    groups[1 if option == "weight_decay" else 2 if option == "rule" else 0][option] = value
    optimizer = optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    other = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=7)
    with pytest.raises(InputError, match="the parameter groups is"):
        other.fit(*data(), epochs=2, batch_size=2, resume=tmp_path)


@pytest.mark.parametrize(
    "wrong", [0.1, [0.1], [0.1] * 4, [None, -1.0, None], ["x", None, None], [True, 0.1, 0.1]]
)
def test_rates_that_do_not_fit_the_groups_are_refused(wrong: Any, tmp_path: Path) -> None:
    trainer().fit(*data(), epochs=1, batch_size=2, callbacks=[Checkpoints(tmp_path)])
    (path,) = tmp_path.glob("*.safetensors")
    file = TensorFile(path)
    assert file.document["own_rates"] == [None, None, 0.001]
    write_tensors(path, file.read(), file.document | {"own_rates": wrong})
    with pytest.raises(DataError, match=r"is malformed|does not fit this run"):
        trainer().fit(*data(), epochs=2, batch_size=2, resume=tmp_path)


def test_a_scheduler_of_epochs_leaves_rates_of_groups_alone() -> None:
    one = trainer()
    halved = LearningRateScheduler(lambda epoch: 0.5**epoch)
    one.fit(*data(), epochs=2, batch_size=2, callbacks=[halved])
    assert one.optimizer.rates_at(9)[1:] == [0.5, 0.001]
    one.optimizer.param_groups[1]["lr"] = 0.1
    with pytest.raises(InputError, match="each group of parameters has one of its own"):
        one.fit(*data(), epochs=1, batch_size=2, callbacks=[halved])


def test_the_schedule_of_a_group_is_compared_with_the_steps() -> None:
    model = network()
    groups = [{"params": model.parameters(), "lr": optim.OneCycleLR(0.1, 7)}]
    one = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(groups, lr=0.1), rng=0)
    with pytest.warns(UserWarning, match="OneCycleLR is made for 7 steps, where this training"):
        one.fit(*data(), epochs=1, batch_size=2)


def test_advice_names_the_largest_rate() -> None:
    model = network()
    groups = [
        {"params": model.layers[0].parameters(), "lr": 1e30},
        {"params": model.layers[3].parameters()},
    ]
    one = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(groups, lr=0.1), rng=0)
    error = pytest.raises(xbp.errors.NonFiniteError, match=r"below 1e\+30 may help")
    with np.errstate(all="ignore"), error:
        one.fit(*data(), epochs=3, batch_size=2)


# --- what is refused ------------------------------------------------------------------------------


def p() -> nn.Parameter:
    return nn.Parameter(np.ones((2, 2)))


TWICE = p()
BAD: list[tuple[Any, str]] = [
    ([{"params": []}], "^parameter group 0 has no parameters; leave it out, or fill it$"),
    ([{"params": p()}, {"params": iter([])}], "^parameter group 1 has no parameters"),
    ([{"params": [TWICE]}, {"params": [TWICE]}], "^parameter 1 is given twice"),
    ([{"params": [TWICE, TWICE]}], "^parameter 1 is given twice"),
    (
        [{"params": p(), "momentun": 0.9}],
        "^parameter group 0: SGD has no option 'momentun', only lr",
    ),
    ([{"params": p(), "parameters": 1}], "^parameter group 0: SGD has no option 'parameters'"),
    ([{"lr": 0.1}], "^parameter group 0 has no 'params'; write"),
    ([p(), {"params": p()}], "not both; the entry 0 is a Parameter"),
    ([{"params": p()}, [p()]], "not both; the entry 1 is a list of 1"),
    (
        [{"params": 3}],
        "^the 'params' of parameter group 0 must be Parameters in a list.*got an int",
    ),
    ([{"params": "weights"}], "^the 'params' of parameter group 0 must be .* got 'weights'"),
    ([{"params": [np.ones(2)]}], "^an optimizer takes Parameters, .* got a ndarray"),
    ([{"params": p(), "lr": -1}], "^parameter group 0: lr must be a finite number from 0, got -1"),
    (
        [{"params": p()}, {"params": p(), "weight_decay": "x"}],
        "^parameter group 1: weight_decay must",
    ),
    ([{"params": p(), "rule": "AdamW"}], "^parameter group 0: its 'rule' must be a class such as"),
    ([{"params": p(), "rule": nn.Linear}], "^parameter group 0: its 'rule' .* the class Linear"),
    (
        [{"params": p(), "rule": optim.Adam, "momentum": 0.9}],
        "group 0: Adam has no option 'momentum'",
    ),
    ([{"params": p(), "rule": optim.Adam, "betas": 0.9}], "group 0: betas must be two numbers"),
]


@pytest.mark.parametrize(("groups", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_wrong_groups_are_one_sentence(groups: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        optim.SGD(groups, lr=0.1)
    assert "\n" not in str(caught.value)


def test_a_wrong_group_that_is_added_is_named_by_its_place() -> None:
    optimizer = optim.SGD([p()], lr=0.1)
    for number in (1, 2):
        with pytest.raises(InputError, match=f"^parameter group {number}: lr must be a finite"):
            optimizer.add_param_group({"params": [p()], "lr": -1})
        optimizer.add_param_group({"params": [p()]})


def test_wrong_changes_change_nothing() -> None:
    a, b = p(), p()
    optimizer = optim.SGD([{"params": a}, {"params": b, "lr": 0.2}], lr=0.1)
    group = optimizer.param_groups[1]
    before = repr(optimizer)
    for name, value, sentence in [
        ("lr", -1, "^lr must be"),
        ("momentum", None, "^momentum must be"),
        ("momentun", 0.9, "^SGD has no option 'momentun'"),
        ("params", [a], "^the parameters of a group cannot be replaced; use add_param_group$"),
    ]:
        with pytest.raises(InputError, match=sentence):
            group[name] = value
    for wrong, sentence in [
        ({"params": [p(), b]}, "^parameter 3 is given twice"),
        ({"params": [p()], "lr": -1}, "^parameter group 2: lr must be"),
        ({"params": []}, "has no parameters"),
        (p(), "^an optimizer needs a group"),
    ]:
        with pytest.raises(InputError, match=sentence):
            optimizer.add_param_group(wrong)  # type: ignore[arg-type]
    assert repr(optimizer) == before
    assert optimizer.parameters == [a, b]
    assert len(optimizer.counts) == len(optimizer.state) == 2
