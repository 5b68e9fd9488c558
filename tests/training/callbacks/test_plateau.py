"""ReduceLROnPlateau: PyTorch's rates, groups, resumed training, invalid arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.training import Checkpoints, LambdaCallback, ReduceLROnPlateau


def trainer(optimizer: Any = None) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(1, 1, dtype="float64", rng=0))
    if optimizer is None:
        optimizer = lambda parameters: optim.SGD(parameters, lr=0.1)  # noqa: E731
    return xbp.Trainer(model, nn.MSELoss(), optimizer(model.parameters()), rng=0)


DATA = np.ones((2, 1)), np.ones((2, 1))
CURVE = [5.0, 4.0, 4.0, 3.9999, 4.1, 3.0, 3.0, float("nan"), 3.0, 2.9, 2.9, 2.9, 2.9, 2.9, 2.9, 1.0]
OPTIONS: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({"patience": 2}, [5, 9, 13], [5, 9, 13]),
    ({"patience": 0, "factor": 0.5}, [3, 4, 5, *range(7, 10), *range(11, 16)], []),
    ({"patience": 1, "cooldown": 2}, [4, 8, 12], [4, 8, 12]),
    (
        {"patience": 1, "threshold": 0.5, "threshold_mode": "abs"},
        [4, 8, 10, 12, 14],
        [3, 5, 7, 9, 11, 13, 15],
    ),
    ({"patience": 1, "threshold": 0.2}, [3, 8, 10, 12, 14], [4, 8, 10, 12, 14]),
    ({"patience": 0, "min_lr": 0.02}, [3], [3]),  # 0.02 in place of 0.01
    ({"patience": 0, "eps": 0.02}, [3], [3]),  # 0.009 less would be less than eps
    ({"patience": 0, "factor": 0.9, "eps": 0.0095}, [3], [3]),  # to 0.09, and then 0.009 less
]
"""And the epochs after which the rate falls in PyTorch 2.13: for the curve, and for its inverse
where that differs."""


def rates(callback: ReduceLROnPlateau, values: list[float], one: xbp.Trainer) -> list[list[float]]:
    """The learning rate after each epoch."""
    found = []

    def end(training: Any, epoch: int, record: Any) -> None:
        found.append(training.optimizer.rates_at(0))

    def put(training: Any, epoch: int, record: Any) -> None:
        record["val_loss"] = values[epoch - 1]

    before, after = LambdaCallback(on_epoch_end=put), LambdaCallback(on_epoch_end=end)
    one.fit(*DATA, epochs=len(values), batch_size=2, callbacks=[before, callback, after])
    return found


def values_for(mode: str) -> list[float]:
    return CURVE if mode == "min" else [1 / value for value in CURVE]


modes = pytest.mark.parametrize("mode", ["min", "max"])


@modes
@pytest.mark.parametrize(("options", "low", "high"), OPTIONS)
def test_the_rate_falls_where_it_should(
    options: dict[str, Any], low: list[int], high: list[int], mode: str
) -> None:
    falls, rate, expected = (high or low) if mode == "max" else low, 0.1, []
    for epoch in range(1, len(CURVE) + 1):
        if epoch in falls:
            rate = max(options.get("factor", 0.1) * rate, options.get("min_lr", 0.0))
        expected.append([rate])
    assert rates(ReduceLROnPlateau(mode=mode, **options), values_for(mode), trainer()) == expected


@modes
def test_of_negative_values_a_share_of_their_size_is_taken(mode: str) -> None:
    sign = 1 if mode == "min" else -1
    values = [sign * value for value in (-10.0, -9.95, -10.05, -11.0)]  # the last one improves
    callback = ReduceLROnPlateau(mode=mode, patience=1, threshold=0.01, factor=0.5)
    assert rates(callback, values, trainer()) == [[0.1], [0.1], [0.05], [0.05]]
    assert callback.best == values[-1]


@modes
@pytest.mark.parametrize("options", [options for options, _, _ in OPTIONS], ids=str)
def test_the_rates_are_pytorchs(options: dict[str, Any], mode: str) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, **{"factor": 0.1, **options})
    expected = []
    for value in values_for(mode):
        peer.step(value)
        expected.append([optimizer.param_groups[0]["lr"]])
    found = rates(ReduceLROnPlateau(mode=mode, **options), values_for(mode), trainer())
    assert len({rate for (rate,) in found}) > 1
    assert found == expected


def test_the_defaults_are_pytorchs() -> None:
    import inspect

    torch = pytest.importorskip("torch")
    ours = inspect.signature(ReduceLROnPlateau).parameters
    theirs = inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau).parameters
    for name in set(ours) - {"monitor", "mode"}:
        assert ours[name].default == theirs[name].default, name


def test_rates_of_groups_fall_too() -> None:
    def grouped(parameters: Any) -> Any:
        first = {"params": parameters[:1], "lr": 0.4}
        return optim.SGD([first, {"params": parameters[1:]}], lr=0.2)

    found = rates(ReduceLROnPlateau(factor=0.5, patience=0), [1.0, 1.0, 1.0], trainer(grouped))
    assert found == [[0.4, 0.2], [0.2, 0.1], [0.1, 0.05]]


def test_each_fit_begins_anew() -> None:
    callback, one = ReduceLROnPlateau("loss", patience=0, threshold=0.0), trainer()
    callback.best, callback.waited = -1.0, 5
    one.fit(*DATA, epochs=2, batch_size=2, callbacks=[callback])
    assert one.optimizer.lr == 0.1  # the loss falls


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    x = default_rng(0).normal(size=(6, 1))

    def run(folder: Path, stop_after: int = 0, resume: bool = False) -> Any:
        def stop(training: Any, number: int) -> None:
            if training.optimizer.steps == stop_after:
                raise KeyboardInterrupt

        one = trainer(lambda parameters: optim.SGD(parameters, lr=1.0))
        callback = ReduceLROnPlateau("loss", factor=0.7, patience=1, cooldown=1)
        callbacks = [callback, Checkpoints(folder, every=1), LambdaCallback(on_step_end=stop)]
        one.fit(x, x**2, 12, batch_size=2, callbacks=callbacks, resume=folder if resume else None)
        return one.model.state_dict()["0.weight"].tobytes(), one.history.records

    whole = run(tmp_path / "whole")
    assert len({record["lr"] for record in whole[1]}) > 2
    for stop_after in range(4, 36, 3):  # within each epoch except the first
        folder = tmp_path / str(stop_after)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop_after)
        assert run(folder, resume=True) == whole


def test_a_schedule_is_refused() -> None:
    def scheduled(parameters: Any) -> Any:
        return optim.SGD(parameters, lr=optim.StepLR(0.1, 2))

    def in_a_group(parameters: Any) -> Any:
        return optim.SGD([{"params": parameters, "lr": optim.StepLR(0.1, 2)}], lr=0.1)

    def not_used(parameters: Any) -> Any:
        return optim.SGD([{"params": parameters, "lr": 0.1}], lr=optim.StepLR(0.1, 2))

    for make in (scheduled, in_a_group):
        with pytest.raises(InputError, match=r"^ReduceLROnPlateau changes a rate that is a number"):
            trainer(make).fit(*DATA, callbacks=[ReduceLROnPlateau("loss")])
    trainer(not_used).fit(*DATA, callbacks=[ReduceLROnPlateau("loss")])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"factor": 1.0}, "factor"),
        ({"factor": -0.1}, "factor"),
        ({"patience": -1}, "patience"),
        ({"threshold": -1}, "threshold"),
        ({"threshold_mode": "relative"}, "threshold_mode"),
        ({"cooldown": 0.5}, "cooldown"),
        ({"min_lr": None}, "min_lr"),
        ({"eps": -1}, "eps"),
        ({"mode": "low"}, "mode"),
    ],
)
def test_an_argument_out_of_range_is_one_sentence(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} must be ") as caught:
        ReduceLROnPlateau(**options)
    assert "\n" not in str(caught.value)


def test_what_is_monitored_is_there() -> None:
    with pytest.raises(InputError, match="there is no 'val_loss' to monitor"):
        trainer().fit(*DATA, callbacks=[ReduceLROnPlateau()])
