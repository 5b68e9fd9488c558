"""Everything public that computes, made and fed: what `xbp parity` runs.

An entry is a call as one would write it, and the shapes it is fed; that is also its title, so that
a failure says how to see it again. For every layer, loss and primitive two more cases follow from
each entry: a batch of one, and arrays that are contiguous in no order. All numbers come from seeds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp import accelerators, initializers, models, nn, optim, primitives, registry
from xbp.backend import Array, array_namespace, brief, use_backend
from xbp.models import lenet1998
from xbp.testing.curves import TRAININGS, Training
from xbp.testing.finding import Finding
from xbp.testing.gradients import check_gradients
from xbp.testing.helpers import each, replaced
from xbp.testing.parity import findings

Host: TypeAlias = NDArray[Any]
Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Item:
    """One case: what `xbp.testing.findings` takes.

    Attributes
    ----------
    kind : str
        ``"layer"``, ``"loss"``, ``"model"``, ``"optimizer"``, ``"initializer"``, ``"primitive"``.
    name : str
        The public name, ``"Conv2d"``.
    case : str
        How it was made and fed: ``"Conv2d(1, 6, 5) of (2, 1, 9, 9)"``.
    make : callable
    inputs : tuple of numpy arrays
    differentiable : bool
        Whether its gradients are compared with numeric derivatives: away from kinks.
    """

    kind: str
    name: str
    case: str
    make: Callable[..., Any]
    inputs: tuple[Host, ...]
    differentiable: bool = False

    def check(self, backends: Iterable[str]) -> list[Finding]:
        """What it comes to on each of the backends.

        The truth is checked, too: what is wrong on all of them alike would pass otherwise.
        """
        backends = list(backends)
        found = findings(self.make, *self.inputs, backends=backends)
        if self.differentiable:
            try:
                self._check_truth()
            except AssertionError as error:
                problem = f"the truth is wrong: {brief(error)}"
                found += [
                    Finding(name, "float64", "the gradients", "backward", 0.0, 0.0, problem)
                    for name in backends
                ]
        return found

    def _check_truth(self) -> None:
        subject = self.make()
        several = hasattr(subject, "forward") and len(self.inputs) > 1
        with use_backend("numpy"), accelerators.disabled():
            check_gradients(subject, *((self.inputs,) if several else self.inputs))


def catalogue() -> Iterator[Item | Training]:
    """All items, kind by kind; then whole trainings."""
    for module, layers in ((nn, LAYERS), (lenet1998, LAYERS_OF_1998)):
        for name, arguments, shape, options in layers:
            yield from _layer("layer", module, name, arguments, shape, options)
    yield from _layer("layer", _Cells, "Recurrent", (2, 3, 2), (2, 4, 2), {"bidirectional": True})
    yield from _network()
    for name, arguments, shape, options in MODELS:
        yield from _layer("model", models, name, arguments, shape, options)
    for module, losses in ((nn, LOSSES), (lenet1998, LOSSES_OF_1998)):
        for name, target, shape, options in losses:
            yield from _loss(module, name, target, shape, options)
    for name, options in OPTIMIZERS:
        yield from _optimizer(name, options)
    yield from _clipping()
    for name, options in INITIALIZERS:
        yield from _initializer(name, options)
    of_primitives = list(_primitives())
    yield from of_primitives
    for accelerator in working_accelerators():
        for item in of_primitives:
            if item.name == accelerator.name:
                fields = vars(item) | {"kind": "accelerator"}
                yield AcceleratorItem(**fields, accelerator=accelerator)
    yield from TRAININGS


def working_accelerators() -> list[accelerators.Accelerator]:
    """Those that stand in for primitives here; none if they are switched off."""
    return accelerators.registered() if accelerators.enabled() else []


# --- numbers -------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 1) -> Host:
    return np.random.default_rng(seed).normal(size=shape)


def sparse(*shape: int) -> Host:
    """Half of the entries are 0: kinks are met exactly, and maxima tie."""
    return normal(*shape) * np.random.default_rng(2).integers(0, 2, shape)


def wide(*shape: int) -> Host:
    """Up to some hundreds: where an exponential that is not careful overflows."""
    return 100 * normal(*shape)


def ends(*shape: int) -> Host:
    """Infinities and nan: among normal numbers, and samples of nothing but -∞.

    The last samples have nan, so that a batch of one has an infinity, and a finite neighbour.
    """
    x = normal(*shape)
    flat = x.reshape(-1)
    flat[1 : -(x.size // 3) : 7] = -np.inf
    flat[4 : -(x.size // 3) : 13] = np.inf
    flat[-2] = np.nan
    x[1] = -np.inf
    return x


def masked(n: int, classes: int) -> Host:
    """Logits of -∞, as of classes that are ruled out, but for the labels 0, 1, …, n - 1."""
    z = normal(n, classes)
    z[np.arange(n), (np.arange(n) + 1) % classes] = -np.inf
    return z


def words(*shape: int) -> Host:
    """32-bit words, as int64."""
    return np.random.default_rng(1).integers(0, 2**32, shape)


# --- the tables: what to make, what to feed it ----------------------------------------------------

CONNECTIONS = [[1, 0, 1], [0, 1, 0], [1, 1, 1], [1, 1, 0]]
"""Which of 3 input maps each of 4 output maps sees."""

RELATIVES = ("ReLU", "LeakyReLU", "ELU", "SELU")
SMOOTH = ("GELU", "SiLU", "Softplus", "Sigmoid", "Tanh", "ScaledTanh", "Softmax", "LogSoftmax")

LAYERS: list[tuple[str, tuple[Any, ...], Any, dict[str, Any]]] = [
    # name, arguments, shape of the input (or the input itself), options
    ("Linear", (5, 3), (4, 5), {}),
    ("Linear", (5, 1), (7, 5), {"bias": False}),
    ("Linear", (4, 3), (2, 3, 4), {}),
    ("Linear", (257, 65), (33, 257), {}),
    ("Conv2d", (1, 6, 5), (3, 1, 12, 11), {"padding": 2}),
    ("Conv2d", (6, 16, 5), (2, 6, 9, 8), {}),
    ("Conv2d", (3, 2, 1), (2, 3, 4, 5), {"bias": False}),
    ("Conv2d", (2, 3, (3, 2)), (3, 2, 7, 6), {"stride": (2, 1), "padding": (1, 2)}),
    ("Conv2d", (2, 2, 2), (2, 2, 9, 8), {"stride": 3}),
    ("Conv2d", (3, 17, 3), (18, 3, 8, 7), {}),
    *(
        (name, arguments, x, {})
        for name in ("MaxPool2d", "AvgPool2d")
        for arguments, x in (
            ((2,), (2, 3, 4, 6)),
            ((2,), (19, 2, 5, 7)),
            ((2,), sparse(2, 3, 6, 6)),
            (((3, 2), (2, 1), (1, 1)), sparse(2, 2, 6, 5)),
            ((3, 1), (2, 2, 5, 6)),
        )
    ),
    *(
        (name, arguments, (2, 5, 3), options)
        for name in ("RNN", "LSTM", "GRU")
        for arguments, options in (
            ((3, 4), {}),
            ((3, 2, 2), {"bidirectional": True}),
            ((3, 4), {"bias": False, "truncate": 2}),
        )
    ),
    ("RNN", (3, 4), (2, 5, 3), {"nonlinearity": "relu"}),
    ("Last", (), (3, 4, 2), {}),
    ("Flatten", (), (3, 2, 4, 5), {}),
    ("Dropout", (0.3,), (3, 7), {}),
    ("Dropout", (), (5, 3, 7, 5), {}),
    *((name, (), x, {}) for name in RELATIVES for x in ((4, 7), sparse(2, 3, 5, 3))),
    ("ReLU", (), sparse(5, 2, 67, 59), {}),
    ("PReLU", (), sparse(4, 7), {}),
    ("PReLU", (3,), (2, 3, 5, 3), {"init": -0.5}),
    *((name, (), x, {}) for name in SMOOTH for x in ((4, 7), wide(5, 6))),
    ("GELU", ("tanh",), (4, 7), {}),
    ("Softplus", (3.0,), (4, 7), {}),
    ("ScaledTanh", (0.5, 3.0), (4, 7), {}),
    ("Softmax", (1,), (2, 3, 5, 2), {}),
    ("LogSoftmax", (1,), (2, 3, 5, 2), {}),
    *((name, (), x, {}) for name in (*RELATIVES, *SMOOTH) for x in (ends(5, 6),)),
    *(("ReLU", (), x, {}) for x in (ends(5, 2, 67, 59),)),
    *(
        (name, arguments, ends(5, 2, 6, 5), {})
        for name in ("MaxPool2d", "AvgPool2d")
        for arguments in ((2,), ((3, 2), (2, 1), (1, 1)))
    ),
    ("Linear", (33, 65), ends(16, 33), {}),
    ("Conv2d", (2, 3, 3), ends(5, 2, 7, 6), {"padding": 1}),
]

LAYERS_OF_1998: list[tuple[str, tuple[Any, ...], Any, dict[str, Any]]] = [
    ("PartialConv2d", (CONNECTIONS, 3), (2, 3, 5, 6), {}),
    ("PartialConv2d", (CONNECTIONS, (3, 2), (2, 1), (1, 2), False), (2, 3, 7, 6), {}),
    ("Subsample2d", (3,), (2, 3, 4, 6), {}),
    ("Subsample2d", (2, (3, 2), (1, 2), (1, 1)), (2, 2, 5, 6), {}),
    ("EuclideanRBF", ([[1, -1, 1], [0.5, 1, 2]],), (4, 3), {}),
    ("EuclideanRBF", ([[1, -1]] * 3,), (4, 5, 2), {}),
    ("Negation", (), (4, 7), {}),
]

MODELS: list[tuple[str, tuple[Any, ...], Any, dict[str, Any]]] = [
    ("LeNet5", (), (3, 1, 28, 28), {}),
    ("LeNet5", (), (2, 1, 28, 28), {"activation": "tanh", "pool": "average"}),
    ("LeNet5", (), (2, 1, 28, 28), {"variant": "1998"}),
    ("MLP", (7, 12, 5, 3), (4, 7), {"dropout": 0.25}),
]

LOSSES: list[tuple[str, str, Any, dict[str, Any]]] = [
    # name, what its targets are, shape of the prediction (or the prediction itself), options
    *(
        (name, "numbers", x, options)
        for name in ("MSELoss", "L1Loss", "HuberLoss")
        for x, options in (
            ((4, 3), {}),
            ((65, 33), {}),
            ((5, 2, 3), {"reduction": "sum", "factor": 0.5}),
            (sparse(7, 3), {"reduction": "batchmean"}),
        )
    ),
    ("HuberLoss", "numbers", (4, 3), {"delta": 3.0}),
    ("BCEWithLogitsLoss", "events", (5, 3), {}),
    ("BCEWithLogitsLoss", "events", wide(6, 1), {"reduction": "sum", "pos_weight": 2.5}),
    ("CrossEntropyLoss", "labels", (5, 3), {}),
    ("CrossEntropyLoss", "labels", wide(33, 10), {"reduction": "sum"}),
    ("CrossEntropyLoss", "probabilities", (5, 3), {}),
    *(
        ("CrossEntropyLoss", target, z, {})
        for target in ("labels", "probabilities")
        for z in (masked(7, 5), ends(6, 4))
    ),
    *((name, "numbers", ends(5, 3), {}) for name in ("MSELoss", "HuberLoss")),
    ("BCEWithLogitsLoss", "events", ends(5, 3), {}),
]

LOSSES_OF_1998: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("RejectingCrossEntropyLoss", "labels", (5, 3), {}),
    ("RejectingCrossEntropyLoss", "labels", (6, 4), {"reduction": "sum", "penalty": -0.5}),
    ("RejectingCrossEntropyLoss", "probabilities", (5, 3), {}),
    *(
        ("RejectingCrossEntropyLoss", target, z, {})
        for target in ("labels", "probabilities")
        for z in (masked(7, 5), ends(6, 4))
    ),
]

DECAY = {"lr": 0.01, "weight_decay": 0.5}
ADAM = {**DECAY, "betas": (0.7, 0.8), "eps": 1e-3}

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    ("SGD", {"lr": optim.OneCycleLR(0.1, 10), "momentum": 0.9}),
    ("Adagrad", {}),
    ("Adagrad", {**DECAY, "lr_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {**DECAY, "alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True}),
    ("Adadelta", {}),
    ("Adadelta", {"rho": 0.6, "eps": 1e-2, "weight_decay": 0.5}),
    *((name, {}) for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")),
    ("Adam", {**ADAM, "amsgrad": True}),
    ("AdamW", {**ADAM, "amsgrad": True}),
    ("Adamax", ADAM),
    ("NAdam", {**ADAM, "momentum_decay": 0.5}),
    ("RAdam", {**ADAM, "decoupled_weight_decay": True}),
]

INITIALIZERS: list[tuple[str, dict[str, Any]]] = [
    ("constant", {"value": 0.1}),
    ("fan_in_uniform", {}),
    ("he_normal", {}),
    ("he_uniform", {}),
    ("lecun_normal", {}),
    ("lecun_uniform", {}),
    ("lenet_uniform", {}),
    ("map_by_map", {"inputs": (1, 3, 2), "init": initializers.he_normal}),
    ("normal", {"std": 0.3}),
    ("orthogonal", {"gain": 0.7}),
    ("uniform", {"bound": 0.3}),
    ("xavier_normal", {}),
    ("xavier_uniform", {"gain": 5 / 3}),
    ("zeros", {}),
]

WINDOWS: list[tuple[Shape, dict[str, tuple[int, int]]]] = [
    # shape of the image, then what looks at it
    ((2, 3, 7, 6), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2)}),
    ((17, 1, 9, 9), {"kernel": (5, 5), "stride": (1, 1), "padding": (2, 2)}),
    ((2, 2, 4, 5), {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}),
    ((1, 2, 9, 8), {"kernel": (2, 2), "stride": (3, 3), "padding": (0, 0)}),
]


SIDE_BY_SIDE: list[tuple[Shape, dict[str, tuple[int, int]]]] = [
    # windows without overlap or padding; the second does not fill the image
    ((18, 6, 8, 8), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
    ((33, 5, 7, 11), {"kernel": (2, 3), "stride": (2, 3), "padding": (0, 0)}),
]


def _unfolded(shape: Shape, kernel: Any, stride: Any, padding: Any) -> Shape:
    """The shape of what `unfold_rows` makes."""
    n, c, height, width = shape
    columns = primitives.output_size((height, width), kernel, stride, padding)[1]
    return height + 2 * padding[0], c, kernel[1], columns, n


def _philox(*counter: Array) -> Array:
    return array_namespace(counter[0]).stack(primitives.philox4x32(counter, (1, 2**32 - 1)))


def _bits(like: Array) -> Array:
    return primitives.random_bits(like, (5, 7, 3), key=(3, 2**31), counter=(1, 2**32 - 1, 7))


def _convolve(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Any:
    return _of_given(primitives.convolve(x, weight, bias, **options), bias)


def _convolve_block(x: Array, weight: Array, bias: Array, **options: Any) -> Any:
    return primitives.convolve_rectify_pool(x, weight, bias, **options)


def _pool(primitive: Callable[..., Any], x: Array, **options: Any) -> Any:
    return primitive(x, **options)


def _of_given(result: Any, bias: Array | None) -> Any:
    """No gradient of a bias that there is not."""
    y, backward = result
    return y, backward if bias is not None else lambda dy: backward(dy)[:2]


def _updated(how: str, update: Callable[..., Any], number: Any, p: Array, *others: Array) -> Array:
    """What becomes of `p`, which `update` changes in place."""
    if how == "scattered":  # all but `p`
        others = tuple(scattered(array) for array in others)
    update(number, p, *others)
    return p


def _add_scaled(factor: float, p: Array, g: Array) -> None:
    primitives.add_scaled(p, factor, g)


def _accumulate(numbers: tuple[float, float], total: Array, g: Array) -> None:
    beta, share = numbers
    primitives.accumulate(total, beta, g, share)


def _rescale(factor: float, p: Array) -> None:
    primitives.rescale(p, factor)


def _average(beta: float, mean: Array, *factors: Array) -> None:
    primitives.average(mean, beta, *factors)


def _normalized_step(numbers: tuple[float, ...], p: Array, m: Array, v: Array) -> None:
    rate, scale, eps = numbers
    primitives.normalized_step(p, rate, m, scale, v, eps)


def _affine(x: Array, weight: Array, bias: Array | None = None, *, relu: bool) -> Any:
    return _of_given(primitives.affine(x, weight, bias, relu=relu), bias)


def _row_written(rows: Array, index: Array, value: Array) -> Array:
    rows = array_namespace(rows).asarray(rows, copy=True)
    primitives.write_row(rows, index, value)
    return rows


def _rectify(x: Array, *, transposed: bool) -> Any:
    """Of `x` as it lies in memory, or of its transpose."""
    if not transposed:
        return primitives.rectify(x)
    y, backward = primitives.rectify(_transposed(x))
    return y, lambda dy: _transposed(backward(dy))


def _flatten(x: Array, *, transposed: bool) -> Array:
    return primitives.flatten(_transposed(x) if transposed else x)


def _transposed(x: Array) -> Array:
    return array_namespace(x).permute_dims(x, tuple(reversed(range(x.ndim))))


PRIMITIVES: list[tuple[str, Callable[..., Array], tuple[Any, ...]]] = [
    # name, a function of arrays alone, their shapes (or the arrays themselves)
    *(("unfold_rows", partial(primitives.unfold_rows, **w), (shape,)) for shape, w in WINDOWS),
    *(
        ("fold_rows", partial(primitives.fold_rows, shape=shape, **w), (_unfolded(shape, **w),))
        for shape, w in WINDOWS
    ),
    ("pad2d", lambda x: primitives.pad2d(x, (1, 2), -0.5), ((2, 3, 4, 5),)),
    ("unpad2d", lambda x: primitives.unpad2d(x, (1, 2)), ((2, 3, 4, 5),)),
    *(
        ("flatten", partial(_flatten, transposed=transposed), (shape,))
        for shape in ((3, 2), (37, 3, 5, 4), (2, 1, 1, 7))
        for transposed in (False, True)
    ),
    ("bincount", partial(primitives.bincount, length=9), (np.arange(50) ** 2 % 13 - 1,)),
    *(
        (name, getattr(primitives, name), (x,))
        for name in ("erf", "erfc", "sigmoid")
        for x in ((7, 9), 3 * normal(64), wide(5, 6), ends(5, 6))
    ),
    *(
        ("cross_entropy", partial(primitives.cross_entropy, **options), (z, t))
        for z, options in ((normal(5, 3), {"scale": 0.2}), (wide(33, 10), {"scale": 1.0}))
        for t in (np.arange(len(z)) % z.shape[1], normal(*z.shape) ** 2)
    ),
    *(
        ("cross_entropy", partial(primitives.cross_entropy, scale=0.5), (z, t))
        for z in (masked(6, 4), ends(6, 4), masked(5, 40))
        for t in (np.arange(len(z)) % z.shape[1], np.eye(*z.shape))
    ),
    *(
        (name, partial(_updated, "", *numbers), (normal(*shape, seed=4), *others))
        for shape in ((7, 9), (257, 129))
        for name, numbers, others in (
            ("add_scaled", (_add_scaled, 0.3), (ends(*shape),)),
            ("accumulate", (_accumulate, (0.9, 1.0)), (ends(*shape),)),
            ("average", (_average, 0.9), (ends(*shape),)),
            ("average", (_average, 0.7), (ends(*shape), ends(*shape))),
            (
                "normalized_step",
                (_normalized_step, (0.1, 1.5, 1e-3)),
                (ends(*shape), ends(*shape) ** 2),
            ),
        )
    ),
    *(
        (name, partial(_updated, how, *numbers), (shape, *others))
        for shape in ((7, 9), (257, 129))
        for how in ("", "scattered")
        for name, numbers, others in (
            ("add_scaled", (_add_scaled, 0.3), (normal(*shape, seed=2),)),
            ("accumulate", (_accumulate, (0.9, 1.0)), (normal(*shape, seed=2),)),
            ("accumulate", (_accumulate, (0.7, 0.25)), (normal(*shape, seed=2),)),
            ("rescale", (_rescale, 0.7), ()),
            ("average", (_average, 0.9), (normal(*shape, seed=2),)),
            ("average", (_average, 0.7), (normal(*shape, seed=2), normal(*shape, seed=3))),
            (
                "normalized_step",
                (_normalized_step, (0.1, 1.5, 1e-3)),
                (normal(*shape, seed=2), normal(*shape, seed=3) ** 2),
            ),
        )
    ),
    *(
        ("matmul", primitives.matmul, (a, (a[-1], n)))
        for a, n in (((7, 9), 5), ((3, 4, 5), 2), ((129, 70), 90), ((2, 600), 300))
    ),
    *(("matmul", primitives.matmul, (ends(m, 70), (70, 90))) for m in (5, 129)),
    ("write_row", _row_written, (normal(5, 3), np.asarray([2]), normal(3, seed=2))),
    ("philox4x32", _philox, tuple(words(4, 33))),
    ("random_bits", _bits, ((2,),)),
]


CONVOLUTIONS = [
    # shapes of image and weight, then stride, padding
    ((5, 2, 8, 7), (3, 2, 3, 2), (2, 1), (1, 1)),
    ((18, 1, 13, 12), (6, 1, 5, 5), (1, 1), (2, 2)),
    ((33, 6, 9, 9), (17, 6, 5, 5), (1, 1), (0, 0)),
    ((4, 3, 5, 5), (2, 3, 1, 1), (1, 1), (0, 0)),
    ((2, 2, 9, 8), (2, 2, 2, 2), (3, 3), (0, 0)),
]
BLOCKS = [(True, (2, 2)), (True, (1, 1)), (False, (3, 2))]
"""Whether there is a ReLU, and the windows of the maximum."""

DIFFERENTIABLE: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    # name, a function of arrays that returns its backward, their shapes (or the arrays themselves)
    *(
        ("rectify", partial(_rectify, transposed=transposed), (x,))
        for transposed in (False, True)
        for x in ((7, 9), sparse(5, 2, 67, 59), (257, 129), ends(5, 6), ends(257, 129))
    ),
    *(
        ("affine", partial(_affine, relu=relu), (x, (out, x[-1]), *bias))
        for x, out in (((5, 40), 3), ((37, 90), 21), ((64, 300), 150), ((3, 7, 33), 65))
        for relu in (False, True)
        for bias in ((), ((out,),))
    ),
    *(("affine", partial(_affine, relu=relu), (ends(37, 90), (21, 90))) for relu in (False, True)),
    *(
        ("convolve", partial(_convolve, stride=(1, 1), padding=(1, 1)), (ends(*x), (3, 2, 3, 3)))
        for x in ((5, 2, 7, 6), (18, 2, 7, 6))
    ),
    *(
        ("convolve", partial(_convolve, stride=stride, padding=padding), (x, w, *bias))
        for x, w, stride, padding in CONVOLUTIONS
        for bias in ((), ((w[0],),))
    ),
    *(
        (
            "convolve_rectify_pool",
            partial(_convolve_block, stride=stride, padding=padding, relu=relu, pool=pool),
            (x, w, (w[0],)),
        )
        for x, w, stride, padding in CONVOLUTIONS
        for relu, pool in BLOCKS
    ),
    *(
        (name, partial(_pool, getattr(primitives, name), **w), (x,))
        for name in ("max_pool", "average_pool")
        for shape, w in (*WINDOWS, *SIDE_BY_SIDE)
        for x in (normal(*shape), sparse(*shape), *((ends(*shape),) if shape[0] > 1 else ()))
        if 2 * max(w["padding"]) <= min(w["kernel"])
    ),
]


# --- from a line of a table to its cases ----------------------------------------------------------


def _layer(
    kind: str, module: Any, name: str, arguments: tuple[Any, ...], x: Any, options: dict[str, Any]
) -> Iterator[Item]:
    made = getattr(module, name)
    call, x = f"{name}({_written(arguments, options)})", _filled(x)
    # Weights are drawn in float64 and rounded to each dtype, so that they fill its digits.
    seeded = {"dtype": "float64", "rng": 0}
    accepted = inspect.signature(made).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    options = {k: v for k, v in seeded.items() if k in accepted or open_ended} | options

    def make() -> Any:
        return made(*arguments, **options)

    yield from _cases(kind, name, call, make, (x,), lambda: _Scattered(make()))


def _network() -> Iterator[Item]:
    def make() -> nn.Layer:
        draw: dict[str, Any] = {"dtype": "float64", "rng": 0}
        return nn.Sequential(
            *(nn.Conv2d(2, 3, 3, **draw), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout()),
            *(nn.Linear(12, 4, **draw), nn.Softmax()),
        )

    call = "Sequential(Conv2d, ReLU, MaxPool2d, Flatten, Dropout, Linear, Softmax)"
    x = normal(3, 2, 6, 7)
    yield from _cases("layer", "Sequential", call, make, (x,), lambda: _Scattered(make()))


def _loss(module: Any, name: str, target: str, y: Any, options: dict[str, Any]) -> Iterator[Item]:
    y = _filled(y)
    n, rng = len(y), np.random.default_rng(3)

    def make() -> Any:
        return getattr(module, name)(**options)

    t: Host
    if target == "labels":
        t = np.arange(n) % y.shape[1]
    elif target == "probabilities":
        t = rng.dirichlet(np.ones(y.shape[1]), n)
    elif target == "events":
        t = rng.uniform(-1, 2, y.shape).clip(0, 1)
    else:  # where there are zeros, some are equal to the prediction: |y - t| has a kink there
        t = np.where(y == 0, y, 5 * rng.normal(size=y.shape))
    call = f"{name}({_written((), options)}) with {target}"
    yield from _cases("loss", name, call, make, (y, t), lambda: _ScatteredLoss(make()))


def _optimizer(name: str, options: dict[str, Any]) -> Iterator[Item]:
    """Ten steps with gradients of scales from 0.01 to 100."""

    def make(parameters: list[nn.Parameter]) -> optim.Optimizer:
        optimizer: optim.Optimizer = getattr(optim, name)(parameters, **options)
        return optimizer

    for shape in ((3, 4), (4099,)):
        scales = 10 ** np.random.default_rng(3).uniform(-2, 2, shape)
        gradients = (scales * normal(*shape, seed=seed) for seed in range(10, 20))
        case = f"{name}({_written((), options)}) for {shape}"
        yield Item("optimizer", name, case, make, (normal(*shape), *gradients))


def _clip(most: float, g: Array) -> Array:
    parameter = nn.Parameter(array_namespace(g).zeros_like(g))
    parameter.add_grad(g)
    optim.clip_grad_norm([parameter], most)
    return parameter.grad


def _clipping() -> Iterator[Item]:
    for most in (0.5, 1e3):
        case = f"clip_grad_norm(…, {most:g}) of (7, 5)"
        yield Item("optimizer", "clip_grad_norm", case, _function(_clip, most), (normal(7, 5),))


def _draw(init: initializers.Initializer, shape: Shape) -> Host:
    return init(shape, np.random.default_rng(0))


def _initializer(name: str, options: dict[str, Any]) -> Iterator[Item]:
    init = partial(getattr(initializers, name), **options)
    shapes: tuple[Shape, ...] = ((6, 5), (4, 3, 5, 2))
    if name == "map_by_map":
        shapes = ((6, 5, 3),)
    for shape in shapes:
        case = f"{name}({_written((), options)}) of {shape}"
        yield Item("initializer", name, case, _function(_draw, init, shape), ())


def _primitives() -> Iterator[Item]:
    for name, function, arrays in PRIMITIVES:
        yield from _primitive(name, function, arrays)
    for name, function, arrays in DIFFERENTIABLE:
        yield from _differentiable(name, function, arrays)


def _primitive(
    name: str, function: Callable[..., Array], arrays: tuple[Any, ...]
) -> Iterator[Item]:
    filled = tuple(_filled(array) for array in arrays)
    given = _arguments(function)
    case = f"{name}({given}) of {', '.join(map(_shape, filled))}"
    yield Item("primitive", name, case, lambda: function, filled)
    make = _function(_of_scattered, function)
    yield Item("primitive", name, f"{case}, scattered", make, filled)


def _differentiable(
    name: str, function: Callable[..., Any], arrays: tuple[Any, ...]
) -> Iterator[Item]:
    filled = tuple(_filled(array) for array in arrays)
    given = _arguments(function)
    case = f"{name}({given}) of {', '.join(map(_shape, filled))}"

    def make() -> nn.Layer:
        return _Differentiable(function)

    yield Item("primitive", name, case, make, filled, _smooth(filled[0]))
    yield Item("primitive", name, f"{case}, scattered", lambda: _Scattered(make()), filled)


@dataclass(frozen=True, kw_only=True)
class AcceleratorItem(Item):
    """A primitive's case on the backend of its accelerator, which may decline it."""

    accelerator: accelerators.Accelerator

    def check(self, backends: Iterable[str]) -> list[Finding]:
        """What the accelerator makes of it; nothing if it declines, or runs on no such backend."""
        _, backend, function = self.accelerator
        accepted = []

        def observed(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            accepted.append(result is not NotImplemented)
            return result

        def find(name: str, kind: type) -> Any:
            fast = before(name, kind)
            return observed if fast is function else fast

        if backend not in backends:
            return []
        before = registry.find
        with replaced(registry, find=find):
            found = super().check([backend])
        return found if any(accepted) else []


def _cases(
    kind: str,
    name: str,
    call: str,
    make: Callable[[], Any],
    inputs: tuple[Host, ...],
    make_scattered: Callable[[], Any],
) -> Iterator[Item]:
    first = tuple(array[:1] for array in inputs)
    smooth = _smooth(inputs[0]) and "truncate" not in call  # a part of a gradient is none
    yield Item(kind, name, f"{call} of {_shape(inputs[0])}", make, inputs, smooth)
    yield Item(kind, name, f"{call} of {_shape(first[0])}", make, first, smooth)
    yield Item(kind, name, f"{call} of {_shape(inputs[0])}, scattered", make_scattered, inputs)


def _function(function: Callable[..., Any], *first: Any) -> Callable[[], Any]:
    """Makes a function of what remains of the arguments."""
    return lambda: partial(function, *first)


def _filled(x: Any) -> Host:
    return normal(*x) if isinstance(x, tuple) else x


def _smooth(x: Host) -> bool:
    """Whether there are derivatives to compare with: no kink is met, and no infinity."""
    return bool(np.all(x)) and bool(np.all(np.isfinite(x)))


def _shape(array: Host) -> str:
    found = {"zeros": array == 0, "infinities": np.isinf(array), "nan": np.isnan(array)}
    return " ".join([str(array.shape), *(f"with {what}" for what, it in found.items() if it.any())])


def _arguments(function: Callable[..., Any]) -> str:
    """What a partial function has been given, as one writes it."""
    if not isinstance(function, partial):
        return ""
    shown = [arg for arg in function.args if not callable(arg) and arg != ""]
    return _written(tuple(shown), function.keywords)


def _written(arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Arguments as one writes them."""
    shown = [repr(value) for value in arguments]
    for key, value in options.items():
        name = value.__name__ if inspect.isfunction(value) else repr(value)
        shown.append(f"{key}={name}")
    return ", ".join(shown)


# --- memory order ---------------------------------------------------------------------------------


def scattered(x: Array) -> Array:
    """The same numbers, in memory in reversed order of the axes and with gaps."""
    xp = array_namespace(x)
    axes = tuple(reversed(range(x.ndim)))
    doubled = xp.repeat(xp.permute_dims(x, axes), 2, axis=x.ndim - 1)
    return xp.permute_dims(doubled[..., ::2], axes)


def _of_scattered(function: Callable[..., Array], *arrays: Array) -> Array:
    return function(*(scattered(array) for array in arrays))


class _Differentiable(nn.Layer):
    """A function that returns its backward, as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Array, nn.Backward]:
        y, backward = self.function(*x) if isinstance(x, tuple) else self.function(x)
        return y, backward


class _Scattered(nn.Layer):
    """A layer whose inputs and incoming gradient are `scattered`."""

    def __init__(self, layer: nn.Layer) -> None:
        self.layer = layer

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Array, nn.Backward]:
        y, backward = self.layer.forward(each(scattered, x), training=training, rng=rng)
        return y, lambda dy: backward(scattered(dy))


class _ScatteredLoss(nn.Loss):
    def __init__(self, loss: nn.Loss) -> None:
        self.loss = loss

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        return self.loss(scattered(prediction), scattered(target))


class _Cells:
    class Recurrent(nn.Recurrent):
        """The base class, through a cell with two states: h = h₋/2 + p ∘ q, c = c₋/2 + h."""

        gates, states = 1, ("h", "c")

        def step(self, xp: Any, p: Array, q: Array, *states: Array) -> Any:
            h = 0.5 * states[0] + p * q

            def backward(dh: Array, dc: Array) -> Any:
                dh = dh + dc
                return dh * q, dh * p, (0.5 * dh, 0.5 * dc)

            return (h, 0.5 * states[1] + h), backward
