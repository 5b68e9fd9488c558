"""A table of layers that can be exported, with differences: ``python -m xbp.exchange.survey``.

It prints docs/onnx.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xbp.errors import InputError
from xbp.exchange.export import largest, needed, run
from xbp.exchange.onnx_graph import OPSET
from xbp.exchange.tracing import traced
from xbp.machine import version
from xbp.testing.catalogue import Item, catalogue

TOLERANCE = 1e-5
"""The largest difference allowed in float32, relative to the largest output."""

HEADER = """\
# ONNX

    xbp export DIR --onnx FILE          # DIR is what xbp train has written

or, for any model, `xbp.exchange.to_onnx(model, "model.onnx", input_shape)`, writes a file for
inference: `pip install ".[onnx]"`. The file is then run in onnxruntime and compared with the model,
and the largest difference is printed or returned.

Layers are not translated one by one. They are run once on arrays of
[ndonnx](https://github.com/Quantco/ndonnx), which implement the Array API and record an ONNX node
for each operation, so that a layer of your own needs no code for its export
([`examples/own_layer`](../examples/own_layer)). Convolution, ReLU, pooling and LayerNorm are
accelerators of those arrays, and become one node each. A Linear is a Transpose, a MatMul and an
Add, which onnxruntime fuses to one Gemm when it loads the file.

- The file has the operators of version {opset} ("opset"), and takes batches of any size `N` of
  at least 1. A layer that must know the size of its batch needs `batch_size` (`--batch-size`). An
  example is a `Conv2d` of float64, which becomes many nodes, as onnxruntime has none for it.
- Inputs and outputs have the names `input` and `output`, weights those of the state dict.
- Recurrent layers are unrolled for the number of time steps in `input_shape`, and start from 0.
- Inference only: `Dropout` is the identity, and there are no losses and no gradients. Of a training
  step there is [another file](guides/training_step.md).
- Layers that cannot be recorded are refused by name: those that read a value (`float(x)`,
  `if x > 0`), or call a function that the Array API lacks.

The table has every layer and model of the catalogue in float32, with the catalogue's input. The
difference is the largest one between the file in onnxruntime and xbp on numpy, divided by the
largest output; up to {tolerance:g} counts as equal. This page was written by
`python -m xbp.exchange.survey > docs/onnx.md`, with {versions}.

| | nodes | | difference |
| --- | --- | --- | --- |
"""


class Row(NamedTuple):
    """The result of one case.

    Attributes
    ----------
    item : Item
    nodes : dict of str to int
        Counts by operator, without constants.
    difference : float
        Relative to the largest output; infinite if it was not exported.
    reason : str
        Why it was not exported; otherwise empty.
    """

    item: Item
    nodes: dict[str, int]
    difference: float
    reason: str

    @property
    def equal(self) -> bool:
        return self.difference <= TOLERANCE

    def cells(self) -> list[str]:
        """Case, nodes, verdict, difference."""
        nodes = ", ".join(f"{n} {name}" if n > 1 else name for name, n in self.nodes.items())
        verdict = "equal" if self.equal else "**differs**"
        if self.reason:
            return [f"`{self.item.case}`", "", f"not exportable: {self.reason}", ""]
        return [f"`{self.item.case}`", nodes, verdict, f"{self.difference:.1e}"]


def items() -> Iterator[Item]:
    """Every layer and model of the catalogue, once for each combination of options and input."""
    for item in catalogue():
        if isinstance(item, Item) and item.kind in ("layer", "model") and not item.not_in_onnx:
            first = item.inputs[0]
            if len(first) > 1 and not item.case.endswith("scattered") and np.isfinite(first).all():
                yield item


def row(item: Item) -> Row:
    """Export a case for any batch size, and compare onnxruntime with numpy."""
    model, x = item.make().astype("float32"), item.inputs[0].astype("float32")
    try:
        file, _ = traced(model, x[:1], None)
    except InputError as error:
        return Row(item, {}, float("inf"), str(error))
    expected, got = model(x), run(file.SerializeToString(), {"input": x})
    nodes = Counter(node.op_type for node in file.graph.node if node.op_type != "Constant")
    return Row(item, dict(nodes), _relative(got - expected, expected), "")


def _relative(difference: Any, expected: Any) -> float:
    return largest(difference) / (largest(expected) or 1.0)


def main() -> None:
    packages = ("ndonnx", "onnx", "onnxruntime")
    for name in packages:
        needed(name)
    versions = [f"{name} {version(name)}" for name in packages]
    facts = {"opset": OPSET, "tolerance": TOLERANCE, "versions": ", ".join(versions)}
    sys.stdout.write(HEADER.format(**facts))
    for item in items():
        sys.stdout.write(f"| {' | '.join(row(item).cells())} |\n")


if __name__ == "__main__":
    main()
