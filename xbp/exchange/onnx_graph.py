"""The ONNX graph of a file: a traced graph without repeated and unused nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v21 as op
from numpy.typing import NDArray
from onnx import numpy_helper

from xbp._version import __version__

Node: TypeAlias = Any
"""An onnx.NodeProto, for which there are no types."""

INPUT, OUTPUT = "input", "output"
BATCH = "N"
"""The name of a batch size that may be any."""

OPSET = 21
"""The version of spox.opset.ai.onnx.v21, which ndonnx uses."""


def finished(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]
) -> Any:
    """The onnx.ModelProto that computes `outputs` from `inputs`, all of them spox variables.

    Inputs named in `weights` become constants of the model ("initializers").
    """
    named = {name: op.identity(var) for name, var in outputs.items()}  # dropped again below
    model = spox.build(dict(inputs), named)
    model.producer_name, model.producer_version = "xbp", __version__
    graph = model.graph
    nodes = list(without_repeats(list(without_empty_cases(graph.node)), outputs))
    nodes = with_outputs_named(useful(nodes, outputs), outputs)
    _replace(graph.node, nodes)
    _replace(graph.input, [value for value in graph.input if value.name not in weights])
    read = {name for node in nodes for name in _read(node)}
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in weights.items()
        if name in read
    )
    operators = model.opset_import[0]  # the lowest version that these nodes need
    operators.version = max(OPSET, operators.version)
    _replace(graph.output, onnx.shape_inference.infer_shapes(model).graph.output)
    for dim in graph.output[0].type.tensor_type.shape.dim[:1]:
        if not dim.dim_value:  # follows from the input's
            dim.dim_param = BATCH
    onnx.checker.check_model(model)
    return model


def without_empty_cases(nodes: Iterable[Node]) -> Iterator[Node]:
    """Replace each ``If`` that tests for an empty array by its branch for a non-empty one.

    ndonnx adds one wherever runtimes may treat empty arrays differently from the Array API. Only an
    empty batch would need it, and is not supported.
    """
    made: dict[str, Node] = {}
    for node in nodes:
        taken = value(node.input[0], made) if node.op_type == "If" else None
        for part in [node] if taken is None else inlined(node, bool(taken)):
            made |= dict.fromkeys(part.output, part)
            yield part


def value(name: str, made: Mapping[str, Node]) -> Any:
    """The value of `name` if no array is empty; None if it is unknown."""
    node = made.get(name)
    if node is None:
        return None
    if node.op_type == "Size":
        return 1  # or more; it is only compared with 0
    if node.op_type == "Constant":
        return numpy_helper.to_array(node.attribute[0].t)
    function = {"Identity": np.positive, "Mul": np.multiply, "Equal": np.equal}.get(node.op_type)
    operands = [value(operand, made) for operand in node.input]
    if function is None or any(operand is None for operand in operands):
        return None
    return function(*operands)


def inlined(node: Node, taken: bool) -> list[Node]:
    """The nodes of one branch of an ``If``; spox has given them unique names."""
    wanted = "then_branch" if taken else "else_branch"
    graph = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    parts = list(without_empty_cases(graph.node))
    names = {end.name: name for end, name in zip(graph.output, node.output, strict=True)}
    for part in parts:
        rename(part, names)
    return parts


def rename(node: Node, names: Mapping[str, str]) -> None:
    """Rename inputs and outputs of a node, and inputs of graphs inside it."""
    for field in (node.input, node.output):
        field[:] = [names.get(name, name) for name in field]
    for attribute in node.attribute:
        for part in attribute.g.node:
            rename(part, names)


def without_repeats(nodes: Iterable[Node], outputs: Collection[str]) -> Iterator[Node]:
    """Merge nodes that compute the same, and name them by operator and number.

    A node that passes its input on is left out, unless it gives an output of the model.
    """
    first: dict[Any, list[str]] = {}  # the outputs of the first node of each kind
    names: dict[str, str] = {}
    count: Counter[str] = Counter()
    for node in nodes:
        made = list(node.output)
        rename(node, names)
        gives = made[0] in outputs  # an Identity of `finished`
        if node.op_type == "Identity" and not gives:
            names[made[0]] = node.input[0]
            continue
        options = sorted(attribute.SerializeToString() for attribute in node.attribute)
        kind = (node.op_type, *node.input, *options)
        if kind not in first or gives:
            node.name = f"{node.op_type}_{count[node.op_type]}"
            count[node.op_type] += 1
            if not gives:
                node.output[:] = [f"{node.name}.{i}" if i else node.name for i in range(len(made))]
                first[kind] = list(node.output)
            yield node
        if not gives:
            names |= zip(made, first[kind], strict=True)


def with_outputs_named(nodes: Iterable[Node], outputs: Collection[str]) -> list[Node]:
    """Drop nodes that only name an output, if the node before can have the name."""
    made: set[str] = set()
    names: dict[str, str] = {}
    kept = []
    for node in nodes:
        origin, name = next(iter(node.input), ""), node.output[0]
        if name in outputs and origin in made and origin not in names:
            names[origin] = name
        else:
            made |= set(node.output)
            kept.append(node)
    for node in kept:
        rename(node, names)
    return kept


def useful(nodes: list[Node], outputs: Collection[str]) -> list[Node]:
    """Keep nodes that outputs depend on, and their outputs up to the last one used.

    Nodes are in topological order.
    """
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            while node.output[-1] not in wanted:
                node.output.pop()
            wanted.update(_read(node))
            kept.append(node)
    return kept[::-1]


def _read(node: Node) -> Iterator[str]:
    """The inputs of a node, and of graphs inside it."""
    yield from node.input
    for attribute in node.attribute:
        for part in attribute.g.node:
            yield from _read(part)


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field[:]
    field.extend(values)
