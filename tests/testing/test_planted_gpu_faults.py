"""Each fault that only a GPU had shown, planted again: the default tests find it without one.

A fault takes the place of one function of xbp; what finds it is a row of the table of captured
epochs (``tests/training/test_captured_epochs.py``) or a test that is named. All of them pass
without it, as they are part of the default run.

================================  ==================================  =======================
fault                             what it does on CuPy                found by
================================  ==================================  =======================
a device as a key                 no hash: no optimizer steps         epoch of Adam
a backend hashed by its device    no hash                             test_strictness
`sign` in a loss                  waits: a mask in array_api_compat   epoch of L1Loss, parity
`clip` in a loss                  waits: the same                     epoch of HuberLoss, parity
`stack` of eleven arrays          uploads pointers: no capture        epoch of LSTM
a value read in a step            waits                               epoch of SGD
an assignment by a mask           waits                               epoch of ELU, parity
a product outside the primitives  cuBLAS refuses to be captured       epoch of Linear
a mask made on the host           an upload: no capture               epoch of Dropout
a numpy float as a factor         float64, silently                   epoch of SGD
a parameter that is made anew     its old memory stays in the graph   epoch of SGD
a number that Python computes     frozen in the graph                 epoch of SGD
a numpy gradient is taken         numpy and CuPy share dtypes         test_strictness, test_foreign
no device is made current         arrays on the thread's device       epoch in a thread
================================  ==================================  =======================
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from training.epochs import check, named, trained

import xbp
from xbp import nn, optim
from xbp.backend import Backend
from xbp.errors import BackendError
from xbp.nn import linear
from xbp.testing import as_strict_as_cupy, check_parity, emulated_graphs
from xbp.testing.helpers import replaced

pytest.importorskip("array_api_strict")

Original = Callable[..., Any]
RECURRENCE = import_module("xbp.primitives.recurrence")  # its name is the primitive's, too


class Fault(NamedTuple):
    """A replacement of the function `owner.name`, made from the original.

    Attributes
    ----------
    found : callable
        A default test; it takes a folder.
    error : type of Exception
    said : str
        The error of the test.
    """

    title: str
    owner: Any
    name: str
    broken: Callable[[Original], Original]
    found: Callable[[Path], None]
    error: type[BaseException]
    said: str

    def __str__(self) -> str:
        return self.title


def epoch(name: str) -> Callable[[Path], None]:
    def captured(path: Path) -> None:
        with xbp.use_backend("array_api_strict"), emulated_graphs():
            check(named(name), path)

    return captured


def hashing(path: Path) -> None:
    with as_strict_as_cupy():
        hash(xbp.backend.find_backend("array_api_strict"))


def mixing(path: Path) -> None:
    with xbp.use_backend("array_api_strict"), as_strict_as_cupy():
        parameter = nn.Parameter(xbp.asarray([1.0]))
        with pytest.raises(BackendError):
            parameter.add_grad(np.ones(1))


def in_a_thread(path: Path) -> None:
    before = xbp.get_backend()
    with emulated_graphs(), ThreadPoolExecutor(1) as pool:
        xbp.set_backend("array_api_strict", device="device2")
        try:
            pool.submit(trained, named("Adam"), False, path).result()
        finally:
            xbp.set_backend(before.name, device=before.device)


def parity(layer: Any) -> Callable[[Path], None]:
    numbers = np.linspace(-2.0, 2.0, 6)
    inputs = (numbers,) if issubclass(layer, nn.Layer) else (numbers, numbers[::-1])
    return lambda path: check_parity(layer, *inputs, backends=["array_api_strict"])


# --- the faults ---


def keyed_by_device(step: Original) -> Original:
    def broken(self: Any, numbers: Any = None) -> None:
        groups: dict[Any, list[Any]] = {}
        for parameter in self.parameters:
            groups.setdefault(parameter.data.device, []).append(parameter)
        step(self, numbers)

    return broken


def hashed_by_device(_: Original) -> Original:
    return lambda self: hash((self.name, self.device))


def with_sign(_: Original) -> Original:
    return lambda self, xp, difference: (xp.abs(difference), xp.sign(difference))


def with_clip(_: Original) -> Original:
    def formula(self: Any, xp: Any, difference: Any) -> Any:
        slope = xp.clip(difference, -self.delta, self.delta)
        return slope * (difference - 0.5 * slope), slope

    return formula


def with_mask(_: Original) -> Original:
    def formula(self: Any, xp: Any, x: Any) -> Any:
        y = self.alpha * xp.expm1(xp.minimum(x, 0.0))
        y[x > 0] = 0.0
        y = y + xp.maximum(x, 0.0)
        return y, lambda: xp.where(x > 0, 1.0, y + self.alpha)

    return formula


def all_at_once(_: Original) -> Original:
    return lambda xp, arrays: xp.stack(arrays)


def reading(step: Original) -> Original:
    def broken(self: Any, numbers: Any = None) -> None:
        for parameter in self.parameters:
            xp = xbp.backend.array_namespace(parameter.data)
            if float(xp.max(xp.abs(parameter.grad))) < 1e6:
                continue
        step(self, numbers)

    return broken


def by_the_namespace(_: Original) -> Original:
    def affine(x: Any, weight: Any, bias: Any) -> Any:
        xp = xbp.backend.array_namespace(x)
        y = xp.matmul(x, weight.T)

        def backward(dy: Any, wants_dx: bool = True) -> Any:
            return xp.matmul(dy, weight), xp.matmul(dy.T, x), xp.sum(dy, axis=0)

        return y if bias is None else y + bias, backward

    return affine


def drawn_on_the_host(_: Original) -> Original:
    def forward(self: Any, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        kept = np.random.default_rng(0).random(x.shape) >= self.p
        mask = xp.astype(xp.asarray(kept, device=x.device), x.dtype)
        return mask * x, lambda dy: mask * dy

    return forward


def of_numpy_floats(coefficients: Original) -> Original:
    return lambda self, lr, t: tuple(map(np.float64, coefficients(self, lr, t)))


def made_anew(step: Original) -> Original:
    def broken(self: Any, numbers: Any = None) -> None:
        step(self, numbers)
        for parameter in self.parameters:
            parameter.data = parameter.data - 0.0 * parameter.data

    return broken


def computed_by_python(_: Original) -> Original:
    def update(self: Any, xp: Any, p: Any, g: Any, state: Any, *numbers: Any) -> None:
        for parameter, gradient in zip(p, g, strict=True):  # all at once, as in one launch
            parameter -= 0.1 / (1 + self.steps) * gradient

    return update


def compared_by_dtype(_: Original) -> Original:
    def add_grad(self: Any, grad: Any) -> None:
        assert grad.shape == self.data.shape
        assert grad.dtype == self.data.dtype
        self.grad = grad

    return add_grad


def nowhere(_: Original) -> Original:
    return lambda self: nullcontext()


SGD = epoch("SGD(lr=0.01, momentum=0.9, dampening=0.3)")
NESTEROV = epoch("SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05)")

FAULTS = [
    Fault("a numpy gradient is taken", nn.Parameter, "add_grad", compared_by_dtype,
          mixing, pytest.fail.Exception, "DID NOT RAISE"),
    Fault("no device is made current", Backend, "on_device", nowhere,
          in_a_thread, Exception, "on array_api_strict|different devices"),
    Fault("a device as a key", optim.Optimizer, "step", keyed_by_device,
          epoch("Adam()"), TypeError, "unhashable"),
    Fault("a backend hashed by its device", Backend, "__hash__", hashed_by_device,
          hashing, TypeError, "unhashable"),
    Fault("sign in a loss", nn.L1Loss, "formula", with_sign,
          epoch("L1Loss"), Exception, "sign of an array on device1 waits"),
    Fault("sign in a loss, by parity", nn.L1Loss, "formula", with_sign,
          parity(nn.L1Loss), AssertionError, "sign of an array on device1 waits"),
    Fault("clip in a loss", nn.HuberLoss, "formula", with_clip,
          epoch("HuberLoss"), Exception, "clip of an array on device1 waits"),
    Fault("clip in a loss, by parity", nn.HuberLoss, "formula", with_clip,
          parity(nn.HuberLoss), AssertionError, "clip of an array on device1 waits"),
    Fault("stack of eleven arrays", RECURRENCE, "stacked", all_at_once,
          epoch("long LSTM"), Exception, "stack of .* copies from the host"),
    Fault("a value read in a step", optim.Optimizer, "step", reading,
          SGD, Exception, "__float__ of .* waits"),
    Fault("an assignment by a mask", nn.ELU, "formula", with_mask,
          epoch("ELU"), Exception, "__setitem__ of .* waits"),
    Fault("an assignment by a mask, by parity", nn.ELU, "formula", with_mask,
          parity(nn.ELU), AssertionError, "__setitem__ of .* waits"),
    Fault("a product outside the primitives", linear, "affine", by_the_namespace,
          epoch("Linear"), Exception, r"matmul of .* needs a handle of CuPy's"),
    Fault("a mask made on the host", nn.Dropout, "forward", drawn_on_the_host,
          epoch("Dropout"), Exception, "asarray of .* copies from the host"),
    Fault("a numpy float as a factor", optim.SGD, "coefficients", of_numpy_floats,
          SGD, TypeError, "float64"),
    Fault("a parameter that is made anew", optim.Optimizer, "step", made_anew,
          SGD, Exception, "an array, or an option of the optimizer, changes"),
    Fault("a number that Python computes", optim.SGD, "update", computed_by_python,
          NESTEROV, AssertionError, "a captured epoch differs"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_of_the_gpu_is_found_without_one(fault: Fault, tmp_path: Path) -> None:
    broken = fault.broken(getattr(fault.owner, fault.name))
    planted = replaced(fault.owner, **{fault.name: broken})
    with planted, pytest.raises(fault.error, match=fault.said):
        fault.found(tmp_path)
