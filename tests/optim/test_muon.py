"""Muon: orthogonal steps, and the choice of its parameters."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.optim.muon import orthogonalized

COEFFICIENTS = (3.4445, -4.775, 2.0315)
NEAR_ONE = 0.68, 1.21
"""The range of singular values of at least 0.003 of the norm after five iterations."""


def singular_values(shape: tuple[int, int], steps: int = 5, seed: int = 0) -> np.ndarray:
    g = default_rng(seed).normal(size=shape)
    o = orthogonalized(np, g, COEFFICIENTS, steps, 1e-7)
    assert o.shape == shape
    return np.linalg.svd(o, compute_uv=False)


@pytest.mark.parametrize("shape", [(20, 20), (12, 40), (40, 12), (1, 7), (7, 1), (64, 3)])
def test_five_steps_make_a_matrix_orthogonal(shape: tuple[int, int]) -> None:
    for seed in range(5):
        g = default_rng(seed).normal(size=shape)
        before = np.linalg.svd(g, compute_uv=False)
        after = singular_values(shape, seed=seed)
        kept = before / np.linalg.norm(g) > 0.003
        assert kept.mean() > 0.9
        assert np.all(after[: kept.sum()] > NEAR_ONE[0])
        assert np.all(after < NEAR_ONE[1])


def test_the_interval_is_that_of_the_docstring() -> None:
    """The polynomial, applied five times, for all values from 0.003 to 1."""
    a, b, c = COEFFICIENTS
    s = np.linspace(0.003, 1, 200_001)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert NEAR_ONE[0] < s.min() < s.max() < NEAR_ONE[1]


def test_fewer_steps_leave_small_singular_values_small() -> None:
    assert singular_values((20, 20), steps=1).min() < 0.1


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_directions_stay(shape: tuple[int, int]) -> None:
    """U and V are those of the matrix: U Vᵀ if all singular values are one."""
    g = default_rng(3).normal(size=shape)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    o = orthogonalized(np, g, COEFFICIENTS, 5, 1e-7)
    inner = u.T @ o @ vt.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-13)  # roundings


@pytest.mark.parametrize(
    "shape", [(6, 4), (4, 6), (8, 2, 3, 1), (3, 1, 2, 2), (4, 1), (3, 0)], ids=str
)
def test_a_step_is_orthogonal_and_scaled_by_the_shape(shape: tuple[int, ...]) -> None:
    p = nn.Parameter(np.zeros(shape))
    optimizer = optim.Muon([p], lr=0.5)
    g = default_rng(0).normal(size=shape)
    p.add_grad(g)
    optimizer.step()
    rows, columns = shape[0], p.data.size // shape[0]
    moved = np.linalg.svd(p.data.reshape(rows, columns), compute_uv=False)
    scale = 0.5 * np.sqrt(max(1, rows / max(columns, 1)))
    direction = orthogonalized(np, g.reshape(rows, columns), COEFFICIENTS, 5, 1e-7)
    # The first momentum is a multiple of g; roundings.
    np.testing.assert_allclose(p.data.reshape(rows, columns), -scale * direction, atol=1e-12)
    assert np.all((moved / scale > NEAR_ONE[0]) & (moved / scale < NEAR_ONE[1]))


def test_no_gradient_moves_nothing_but_the_decay() -> None:
    p = nn.Parameter(np.ones((2, 3)))
    optimizer = optim.Muon([p], lr=0.5, weight_decay=0.1)
    p.add_grad(np.zeros((2, 3)))
    optimizer.step()
    assert p.data.tolist() == [[0.95] * 3] * 2


# --- groups ---------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=0), nn.PReLU(2), nn.Conv2d(2, 3, 3, rng=1), nn.Flatten(),
        nn.Linear(12, 4, rng=2), nn.Linear(4, 2, rng=3),
    )  # fmt: skip


def test_hidden_weights_in_one_line() -> None:
    model = network()
    optimizer = optim.Muon(optim.muon_groups(model, lr=3e-4, betas=(0.8, 0.9)), lr=0.02)
    hidden, rest = optimizer.param_groups
    assert hidden["params"] == [model.layers[2].weight, model.layers[4].weight]  # type: ignore[attr-defined]
    assert len(rest["params"]) == len(model.parameters()) - 2
    assert (hidden["lr"], rest["lr"], rest["betas"]) == (0.02, 3e-4, (0.8, 0.9))
    assert [type(rule) for rule, _ in optimizer.rules()] == [optim.Muon, optim.AdamW]


def test_what_is_not_hidden_can_be_said() -> None:
    model = network()
    groups = optim.muon_groups(model, others=[model.layers[5], model.layers[0].weight])  # type: ignore[attr-defined]
    default = optim.muon_groups(model)
    assert groups == default
    assert len(optim.muon_groups(model, others=[])[0]["params"]) == 4
    assert len(optim.muon_groups(model, others=model.layers[4])[0]["params"]) == 3  # type: ignore[arg-type]
    assert len(optim.muon_groups(nn.Linear(2, 2, rng=0))) == 1


@pytest.mark.parametrize("tie", [True, False])
def test_tables_and_norms_are_not_hidden(tie: bool) -> None:
    model = xbp.models.GPT(9, 4, layers=2, heads=2, width=8, tie=tie, rng=0)
    groups = optim.muon_groups(model, **({"others": []} if tie else {"others": [model.head]}))  # type: ignore[arg-type]
    in_blocks = [p for p in model.blocks.parameters() if p.data.ndim == 2]
    assert groups[0]["params"] == in_blocks
    norm = nn.Sequential(nn.LayerNorm((2, 3)), nn.Linear(3, 3, bias=False), nn.LayerNorm((2, 3)))
    assert [len(g["params"]) for g in optim.muon_groups(norm, others=[])] == [1, 4]


def test_wrong_parameters_are_one_sentence() -> None:
    model = network()
    with pytest.raises(
        InputError, match=r"^Muon takes matrices and kernels, but parameter 1 has the "
    ):
        optim.Muon(model.parameters())
    with pytest.raises(InputError, match=r"^muon_groups takes a model, an nn\.Layer, got a list"):
        optim.muon_groups(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^others must be layers or Parameters .* got 'head'"):
        optim.muon_groups(model, others=["head"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="AdamW has no option 'momentum'"):
        optim.Muon(optim.muon_groups(model, momentum=0.9))


def test_a_network_learns() -> None:
    rng = default_rng(0)
    x = rng.normal(size=(200, 6)).astype("float32")
    y = (np.sin(3 * x[:, 0]) * x[:, 1] > 0).astype(int)
    model = nn.Sequential(
        nn.Linear(6, 32, rng=0),
        nn.Tanh(),
        nn.Linear(32, 32, rng=1),
        nn.Tanh(),
        nn.Linear(32, 2, rng=2),
    )
    optimizer = optim.Muon(optim.muon_groups(model, lr=0.01), lr=0.02)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)
    history = trainer.fit(x, y, epochs=60, batch_size=50)
    assert history["accuracy"][-1] > 0.95
