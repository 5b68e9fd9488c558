"""Every layer of the test table gives equal rows for a share of the batch and for all of it."""

from typing import Any

import numpy as np
import pytest
from parallel.shares import Thread, by_threads

from xbp import nn
from xbp.nested import tree_leaves, tree_map
from xbp.random import RandomStream
from xbp.testing.cases import CASES

LAYERS = [case for case in CASES if case.kind in ("layer", "model") and case.finite]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
"""float64 sums of a few thousand numbers, in another order."""


def run(case: Any, x: Any, dy: Any, stream: RandomStream, group: Thread | None) -> Any:
    layer = case.make()
    if group is not None:
        nn.pool_statistics(layer, group)
    y, backward = layer.forward(x, training=True, rng=stream)
    if dy is None:
        rng = np.random.default_rng(1)
        dy = tree_map(lambda part: rng.normal(size=part.shape), y)
    else:
        dy = tree_map(lambda part: part[group.rank :: group.size], dy)  # type: ignore[union-attr]
    dx = backward(dy)
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    buffers = {name: buffer.data for name, buffer in layer.named_buffers()}
    return y, dx, gradients, buffers, dy


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_shares_make_up_the_whole(case: Any) -> None:
    x = case.inputs()[0]
    rows = len(x)
    y, dx, gradients, buffers, dy = run(case, x, None, RandomStream(3), None)

    def work(group: Thread) -> Any:
        stream = RandomStream(3)
        stream.take_share(group.rank, group.size, rows)
        mine = slice(group.rank, None, group.size)
        found = run(case, x[mine], dy, stream, group)
        for part, whole in ((found[0], y), (found[1], dx)):
            for some, everything in zip(tree_leaves(part), tree_leaves(whole), strict=True):
                if everything is not None:
                    np.testing.assert_allclose(some, everything[mine], **CLOSE)
        for name, value in found[2].items():
            assert (value is None) == (gradients[name] is None)
            if value is not None:
                group.sum_(value)
                np.testing.assert_allclose(value, gradients[name], **CLOSE, err_msg=name)
        for name, value in found[3].items():
            np.testing.assert_allclose(value, buffers[name], **CLOSE, err_msg=name)

    by_threads(rows + 1, work)  # the last one has no rows
