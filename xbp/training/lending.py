"""Arrays that outlive a step, lent to the graph that records it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xbp.backend import Graph
from xbp.errors import InputError
from xbp.nested import tree_map


@contextmanager
def lent(graph: Graph, steps: Any, recording: Any) -> Iterator[None]:
    """Within the block, the graph has the arrays of a trainer's recorded steps.

    A graph of the host sees what is done with them in this way (`Graph.lend`).

    Parameters
    ----------
    graph : Graph
    steps : Recordings
        Their data, rows, parameters, the optimizer's state, and that of a scaled loss.
    recording : Recording
        Its rows of results.
    """
    if not graph.on_host:
        yield
        return
    rows, optimizer, lend, back = steps.rows, steps.optimizer, graph.lend, graph.take_back
    before = [(parameter, parameter.data) for parameter in steps.frozen.parameters]
    data, scaling = steps.data, steps.trainer.scaling

    def exchange(function: Any) -> None:
        for name in ("order", "slot", "places"):
            setattr(rows, name, function(getattr(rows, name)))
        if scaling is not None:
            scaling.scale, scaling.good = map(function, (scaling.scale, scaling.good))
        for held in (rows.coefficients, recording.rows, *optimizer.state):
            held.update({name: function(array) for name, array in held.items()})

    try:
        steps.data = tuple(map(lend, data))
        exchange(lend)
        for parameter, array in before:
            parameter.data = lend(array)
        given = [parameter.data for parameter, _ in before]
        yield
        for (parameter, _), array in zip(before, given, strict=True):
            if parameter.data is not array:
                msg = f"{parameter!r} gets a new array in each step"
                raise InputError(msg)
    finally:
        for parameter, array in before:
            parameter.data, parameter.grad = array, back(parameter.grad)
        exchange(back)
        steps.data = data
        recording.outputs = tree_map(back, recording.outputs)
