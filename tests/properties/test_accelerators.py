"""Coverage of accelerators by the properties: they reach each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import test_layers, test_optimizers, test_primitives
from properties.drawing import check, dtypes, normals, quarters, seeds, ways
from properties.problems import TABLE

from xbp import accelerators, nn, optim, registry


def test_every_accelerator_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[str] = set()

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            result = function(*args, **keywords)
            if result is not NotImplemented:
                reached.add(name)
            return result

        return call

    here = [a for a in accelerators.registered() if a.backend == "numpy"]
    table = {a.name: watched(a.name, a.function) for a in here}
    if not table:
        pytest.skip("no accelerator works here")
    monkeypatch.setattr(registry, "_tables", {np.ndarray: table})
    invariance = test_layers.test_dtype_memory_order_and_accelerators_do_not_matter
    for name in TABLE:
        few(invariance)(name=name)
    for kind in test_optimizers.LINES:
        few(test_optimizers.test_it_is_its_definition)(kind=kind)
    test_primitives.test_convolution_rectifier_and_maximum_in_one_call()
    test_primitives.test_rounding_is_to_the_nearest_of_a_format()
    assert reached == set(table)


def few(test: Any) -> Any:
    """The same test with fewer examples."""
    again = given(data=st.data())(test.hypothesis.inner_test)
    return settings(max_examples=5, deadline=None, derandomize=True)(again)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
@given(st.sampled_from([32_767, 32_768, 40_001, 100_003]), dtypes, seeds)
def test_updates_of_arrays_that_threads_share(kind: str, n: int, dtype: str, rng: Any) -> None:
    start, gradients = normals(rng, n), [normals(rng, n) for _ in range(2)]
    found = []
    for way in ways():
        parameter = nn.Parameter(start.astype(dtype))
        optimizer = getattr(optim, kind)([parameter], lr=0.1)
        with way:
            for gradient in gradients:
                parameter.zero_grad()
                parameter.add_grad(gradient.astype(dtype))
                optimizer.step()
        found.append(parameter.data)
    # A dozen operations a step, of numbers of order 1, in another order or with fewer roundings.
    check(found[0], found[1], dtype, 100 * float(np.finfo(dtype).eps), "the parameter")


@given(st.sampled_from([32_767, 32_768, 40_001, 100_003]), dtypes, seeds)
def test_rectifiers_of_arrays_that_threads_share(n: int, dtype: str, rng: Any) -> None:
    x, dy = (quarters(rng, n).astype(dtype) for _ in range(2))
    for way in ways():
        with way:
            y, backward = nn.ReLU().forward(x)
            check(y, np.where(x > 0, x, 0), dtype, 0.0, "the output")
            check(backward(dy), np.where(x > 0, dy, 0), dtype, 0.0, "the gradient")
