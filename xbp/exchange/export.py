"""Export of a model to an ONNX file, by tracing one call.

ndonnx's arrays implement the Array API, and add an ONNX node for each operation. So no layer needs
an exporter: every layer that is written for `self.check_input(x)` can be traced, a user's included.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import integer
from xbp.backend import Array, brief, dtype_name, get_backend, to_numpy
from xbp.errors import BackendError, InputError
from xbp.nn.embedding import Embedding
from xbp.nn.layer import Layer
from xbp.training.files import replacing

NEW = ".new"
"""What an output of a training step adds to the name of the input that it is in the next step."""

WRONG = 1e-3
"""A difference, relative to the largest output, that rounding cannot explain.

In float32 the difference is below 1e-6 for every layer and model in docs/onnx.md; a node with
another meaning than its layer is wrong by about 1.
"""


@dataclass(frozen=True)
class Exported:
    """An exported file: what it contains, and how its outputs compare with the model's.

    Attributes
    ----------
    input_shape, output_shape : tuple of int or str
        ``"N"`` is a batch of any size.
    dtype : str
    opset : int
    nodes : dict of str to int
        The number of nodes of each ONNX operator.
    difference : float or None
        The largest difference between the outputs of the model and of the file in onnxruntime, for
        random input; None if onnxruntime is not installed.
    largest : float
        The largest output, for a relative difference.
    """

    input_shape: tuple[int | str, ...]
    output_shape: tuple[int | str, ...]
    dtype: str
    opset: int
    nodes: dict[str, int]
    difference: float | None
    largest: float


def to_onnx(
    model: Layer,
    path: str | os.PathLike[str],
    input_shape: tuple[int, ...],
    *,
    batch_size: int | None = None,
    weights_as_inputs: bool = False,
) -> Exported:
    """Write `model` as an ONNX file for inference, which computes ``model(x)``.

    If onnxruntime is installed, file and model are compared on random input.

    Parameters
    ----------
    model : Layer
        On any backend, of any dtype (float32 if it has no parameters). It is not changed.
    path : path-like
        The file appears whole or not at all.
    input_shape : tuple of int
        Of one sample: ``(1, 28, 28)`` for a grey image, ``(T,)`` for T tokens.
    batch_size : int, optional
        By default the file accepts batches of any size.
    weights_as_inputs : bool, default False
        Give the parameters, by their names in the state dict, as further inputs, in place of
        constants: for weights that change, as those of `export_training_step`.

    Returns
    -------
    Exported

    Notes
    -----
    Input and output are named ``input`` and ``output``, weights as in the model's state dict. The
    file uses ONNX opset 21. Convolution, ReLU, pooling and LayerNorm are one node each, unless
    accelerators are switched off. Recurrent layers are unrolled for the number of time steps in
    `input_shape`. Empty batches are not supported.

    Raises
    ------
    InputError
        A layer cannot be traced (the message names it), or refuses such input.
    BackendError
        ndonnx is not installed.
    DataError
        The file cannot be written.

    Examples
    --------
    >>> import pytest; _ = pytest.importorskip("ndonnx")
    >>> import tempfile, xbp
    >>> from xbp.exchange import to_onnx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = to_onnx(xbp.models.LeNet5(rng=0), f"{folder}/lenet5.onnx", (1, 28, 28))
    >>> exported.input_shape, exported.output_shape, exported.nodes["Conv"]
    (('N', 1, 28, 28), ('N', 10), 2)
    """
    for package in ("ndonnx", "onnx"):
        needed(package)
    from xbp.exchange.tracing import traced

    x = sample(model, input_shape, batch_size)
    expected = to_numpy(model(placed(model, x)))
    file, weights = traced(model, x, batch_size, weights_as_inputs)
    content = file.SerializeToString()
    got = run(content, {"input": x, **weights})
    difference = None if got is None else largest(got - expected)
    if difference is not None and not difference <= WRONG * largest(expected):
        msg = (
            f"{type(model).__name__} differs by {difference:.2g} in onnxruntime, where its largest "
            f"output is {largest(expected):.2g}, so nothing was written; export its layers one by "
            "one to find out which it is"
        )
        raise InputError(msg)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Exported(
        input_shape=shape_of(file.graph.input[0]),
        output_shape=shape_of(file.graph.output[0]),
        dtype=dtype_name(x.dtype),
        opset=file.opset_import[0].version,
        nodes=dict(Counter(node.op_type for node in file.graph.node)),
        difference=difference,
        largest=largest(expected),
    )


def needed(package: str) -> None:
    """Refuse to continue without an optional package.

    Raises
    ------
    BackendError
        It is not installed.
    """
    try:
        with warnings.catch_warnings():  # ndonnx warns if onnxruntime is missing
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    except ImportError as error:
        msg = f"to write ONNX files, {package} is needed ({error}); pip install ndonnx onnxruntime"
        raise BackendError(msg) from None


def sample(model: Layer, shape: tuple[int, ...], batch_size: int | None) -> NDArray[Any]:
    """Random input for `model`: a batch of that size, or of 3; tokens where it has no numbers."""
    try:
        sizes = [integer("each size in input_shape", size, least=1) for size in shape]
    except TypeError:
        msg = f"input_shape must be the shape of one sample, e.g. (1, 28, 28), got {shape!r}"
        raise InputError(msg) from None
    batch = 3 if batch_size is None else integer("batch_size", batch_size, least=1)
    dtype = next(map(dtype_name, model.dtypes()), "float32")
    rng, full = np.random.default_rng(0), (batch, *sizes)
    x = rng.normal(size=full).astype(dtype)
    tables = [layer for layer in model.tree() if isinstance(layer, Embedding)]
    if tables:
        try:
            model(placed(model, x))
        except InputError:  # it wants integers
            return rng.integers(0, min(table.num_embeddings for table in tables), full)
    return x


def placed(model: Layer, x: NDArray[Any]) -> Array:
    """`x` where the model lives."""
    return (model.backend() or get_backend()).asarray(x)


def run(content: bytes, inputs: Mapping[str, Any]) -> NDArray[Any] | None:
    """The output of onnxruntime for the content of a file; None if it is not installed."""
    session = session_of(content)
    return None if session is None else run_session(session, inputs)[0]


def session_of(content: bytes) -> Any:
    """An onnxruntime.InferenceSession for the content of a file; None if it is not installed.

    Raises
    ------
    InputError
        onnxruntime refuses the file.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    try:
        return runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise _cannot_run(error) from error


def run_session(session: Any, inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
    """The outputs of a session.

    Raises
    ------
    InputError
        onnxruntime fails.
    """
    try:
        return [np.asarray(output) for output in session.run(None, dict(inputs))]
    except Exception as error:
        raise _cannot_run(error) from error


def _cannot_run(error: Exception) -> InputError:
    return InputError(
        f"onnxruntime cannot run the file ({brief(error)}), so nothing was written; it has all "
        'operators for float32: convert the model with .astype("float32")'
    )


def largest(array: NDArray[Any]) -> float:
    """The largest absolute value; 0 for an empty array.

    >>> largest(np.array([-2.0, 1.0])), largest(np.array([]))
    (2.0, 0.0)
    """
    return float(np.max(np.abs(array), initial=0.0))


def shape_of(value: Any) -> tuple[int | str, ...]:
    """The shape of an input or output of an ONNX graph, with ``"N"`` for any batch size."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_param or dim.dim_value or "?" for dim in dims)
