"""LeNet-5 as it was in 1998."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import optim
from xbp.models import LeNet5
from xbp.models.lenet1998 import CODES, CONNECTIONS, RejectingCrossEntropyLoss
from xbp.nn.summary import summary
from xbp.testing import check_parity, oracles
from xbp.training import load_weights, save_weights

SMALL = np.random.default_rng(0).normal(size=(2, 1, 28, 28))


def paper(**options: Any) -> LeNet5:
    return LeNet5(variant="1998", rng=0, **options)


def test_the_layers_of_1998_have_the_papers_sizes_and_numbers_of_parameters() -> None:
    """LeCun, Bottou, Bengio & Haffner 1998, section II.B and figure 2."""
    rows = summary(paper(), (1, 28, 28))
    learned = [(row.output_shape, row.parameters) for row in rows if row.parameters]
    assert learned == [
        ((6, 28, 28), 156),  # C1
        ((6, 14, 14), 12),  # S2
        ((16, 10, 10), 1_516),  # C3
        ((16, 5, 5), 32),  # S4
        ((120, 1, 1), 48_120),  # C5
        ((84,), 10_164),  # F6
    ]
    assert rows[-1].output_shape == (10,)
    assert sum(p.data.size for p in paper().parameters()) == 60_000
    # A squashing function follows each of C1 … F6 (flattening is not a layer of the paper).
    names = [row.kind for row in rows if row.kind != "Flatten"]
    assert names[1:12:2] == ["ScaledTanh"] * 6
    assert rows[9].kind == "ScaledTanh" and rows[10].kind == "Flatten"
    # The paper's numbers of connections: weights and bias of a unit, times the number of units.
    per_unit = {"C1": 25 + 1, "S2": 4 + 1, "S4": 4 + 1, "C5": 400 + 1}
    units = {"C1": 6 * 28 * 28, "S2": 6 * 14 * 14, "S4": 16 * 5 * 5, "C5": 120}
    connections = {name: per_unit[name] * units[name] for name in units}
    assert connections == {"C1": 122_304, "S2": 5_880, "S4": 2_000, "C5": 48_120}
    assert 1_516 * 10 * 10 == 151_600


def test_c3_is_connected_as_in_table_i() -> None:
    """Six maps are connected to three neighbours in a ring, nine to four, and the last to all."""
    rings = [{(start + k) % 6 for k in range(n)} for n in (3, 4) for start in range(6)]
    table = [{c for c, linked in enumerate(row) if linked} for row in CONNECTIONS]
    assert table[:12] == rings
    assert table[12:] == [{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}, set(range(6))]
    assert [sum(column) for column in zip(*CONNECTIONS, strict=True)] == [10] * 6


def test_the_codes_are_pictures_of_seven_by_twelve_pixels() -> None:
    codes = np.array(CODES)
    assert codes.shape == (10, 84)
    assert set(codes.ravel().tolist()) == {-1, 1}
    one = codes[1].reshape(12, 7)
    assert one[9].tolist() == [-1, 1, 1, 1, 1, 1, 1]
    differing = [(a != b).sum() for i, a in enumerate(codes) for b in codes[:i]]
    assert min(differing) >= 12  # so that all digits are distinct


def test_the_network_of_1998_computes_what_its_layers_are_defined_to() -> None:
    model = paper(dtype="float64")
    s = model.state_dict()

    def squash(y: Any) -> Any:
        return oracles.scaled_tanh(y, 1.7159, 2 / 3)

    def subsample(y: Any, name: str) -> Any:
        w, b = s[f"{name}.weight"], s[f"{name}.bias"]
        return oracles.subsample2d(y, w, b, (2, 2), (2, 2), (0, 0))

    x = SMALL[:1]
    c1 = squash(oracles.conv2d(x, s["0.weight"], s["0.bias"], padding=(2, 2)))
    s2 = squash(subsample(c1, "2"))
    table = [[int(linked) for linked in row] for row in CONNECTIONS]
    c3 = squash(oracles.partial_conv2d(s2, s["4.weight"], s["4.bias"], table))
    s4 = squash(subsample(c3, "6"))
    c5 = squash(oracles.conv2d(s4, s["8.weight"], s["8.bias"])).reshape(1, 120)
    f6 = squash(oracles.linear(c5, s["11.weight"], s["11.bias"]))
    y = oracles.euclidean_rbf(f6, np.array(CODES, dtype=float))
    # Seven layers of sums of up to 400 products, with accumulated roundings.
    np.testing.assert_allclose(model(x), -y, rtol=1e-12)


def test_initial_weights_lie_within_the_papers_bounds_and_biases_are_0() -> None:
    state = paper(dtype="float64").state_dict()
    fan_in = {"0": 25, "2": 4, "6": 4, "8": 400, "11": 120}
    for layer, n in fan_in.items():
        weight = np.abs(state[f"{layer}.weight"])
        assert 0.5 * 2.4 / n < weight.max() <= 2.4 / n
    kernels = iter(state["4.weight"])
    for row in CONNECTIONS:  # each map of C3 with its own number of inputs
        inputs = sum(row)
        largest = max(np.abs(next(kernels)).max() for _ in range(inputs))
        assert 0.9 * 2.4 / (25 * inputs) < largest <= 2.4 / (25 * inputs)
    assert not any(array.any() for name, array in state.items() if name.endswith("bias"))


@pytest.mark.parametrize("backend", [name for name in xbp.available_backends() if name != "numpy"])
def test_the_network_of_1998_is_the_same_on(backend: str) -> None:
    check_parity(paper, SMALL, backends=[backend])


def test_training_moves_all_that_is_learned_and_no_constant(tmp_path: Path) -> None:
    x, labels = SMALL.astype("float32"), np.array([3, 7])
    model = paper()
    before = model.state_dict()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    trainer = xbp.Trainer(model, RejectingCrossEntropyLoss(), optimizer, ["accuracy"], rng=0)
    history = trainer.fit(x, labels, epochs=40, batch_size=2, verbose=False)
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    assert history["accuracy"][-1] == 1
    after = model.state_dict()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {"4.placement", "13.codes"}
    save_weights(after, tmp_path / "model.safetensors")
    loaded = LeNet5(variant="1998", rng=1)
    loaded.load_state_dict(load_weights(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded(x), model(x))
