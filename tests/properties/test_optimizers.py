"""Properties of every optimizer, for all options, shapes and gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from properties.drawing import Host, dtypes, everything_of, layouts, normals, seeds, ways

from xbp import nn
from xbp.testing.cases import OPTIMIZERS, Optimizer, Rule

LINES = {line.name: line for line in OPTIMIZERS if line.oracle}
SCALES = [0.0, 1e-12, 1e-6, 1.0, 1.0, 1.0, 1e3, 1e9]
"""Of gradients, entry by entry. Their squares stay within float32, or so far below ε that what is
lost of them does not count."""


@st.composite
def rules(draw: st.DrawFn, line: Optimizer) -> Rule:
    """A rule with all options drawn. (Defaults are compared with PyTorch's in test_family.py.)"""
    if not line.drawn:
        return draw(st.sampled_from([*line.rules()]))
    values = draw(st.sampled_from(line.drawn))
    return Rule(line.name, {name: draw(st.sampled_from(v)) for name, v in values.items()})


def gradients(rng: np.random.Generator, shape: tuple[int, ...], steps: int) -> list[Host]:
    """Gradients with one scale for each entry, some of them 0."""
    scale = rng.choice(SCALES, shape)
    return [
        (scale * normals(rng, *shape) * rng.choice([0, 1, 1, 1], shape)).astype(np.float32) * 1.0
        for _ in range(steps)
    ]


@pytest.mark.parametrize("kind", LINES)
@given(data=st.data())
def test_it_is_its_definition(kind: str, data: st.DataObject) -> None:
    """A parameter with another memory order than its gradient, and its state with a third."""
    rule, dtype = data.draw(rules(LINES[kind])), data.draw(dtypes)
    shape = data.draw(st.lists(st.integers(1, 5), max_size=3).map(tuple))
    steps, rng = data.draw(st.integers(1, 12)), data.draw(seeds)
    own, other = data.draw(layouts)._replace(writeable=True), data.draw(layouts)
    note(f"{rule}, {steps} steps")
    start, slopes = normals(rng, *shape), gradients(rng, shape, steps)
    slopes = [np.asarray(g, np.float64) for g in slopes]
    path = [
        start,
        *(LINES[kind].oracle(start, slopes[: t + 1], **rule.options) for t in range(steps)),
    ]
    for way in ways():
        parameter = nn.Parameter(own(start.astype(dtype)))
        array, optimizer = parameter.data, rule([parameter])
        with way:
            for gradient in slopes:
                parameter.zero_grad()
                parameter.add_grad(other(gradient.astype(dtype)))
                before = everything_of(parameter.grad)
                optimizer.step()
                assert everything_of(parameter.grad) == before, "the gradient was changed"
        assert parameter.data is array, "the parameter is another array"
        assert_close(array, path, slopes, rule)
        assert {x.dtype for x in (array, *optimizer.state[0].values())} == {np.dtype(dtype)}


def assert_close(found: Host, path: list[Host], slopes: list[Host], rule: Rule) -> None:
    """Entry by entry, within 64 roundings of its path: a dozen operations a step, each with an
    error of at most ε times the sum of all steps so far. (An average may cancel to a fraction of
    the terms of earlier steps.)

    Muon mixes the entries of a matrix, and stretches its smallest singular values, and roundings
    with them, by 3.4445 in each step of its iteration.
    """
    epsilon = np.finfo(found.dtype).eps
    moves = sum(np.abs(b - a) for a, b in pairwise(path))
    if rule.name == "Muon" and found.ndim >= 2:
        moves = np.max(moves) * 3.4445 ** rule.options["ns_steps"]
    allowed = 64 * epsilon * (np.abs(path[0]) + moves)
    error = np.abs(found.astype(np.float64) - path[-1])
    assert np.all(error <= allowed), f"wrong by {error.max():.3g}, {(error / allowed).max():.3g} ×"
