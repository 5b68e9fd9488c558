"""Losses with options drawn at random against PyTorch's, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties.drawing import seeds

from xbp import nn

torch: Any = pytest.importorskip("torch")

WITHIN = 1e-10
"""Sums of some dozens of float64 terms in another order, and powers by another library."""

reductions = st.sampled_from(["mean", "sum"])
smoothings = st.sampled_from([0.0, 0.1, 1.0])
ignored = st.sampled_from([None, -100, 0, 255])


def compare(ours: Any, theirs: Any, prediction: Any, *target: Any) -> None:
    """Value and gradients."""
    parts = prediction if isinstance(prediction, tuple) else (prediction,)
    leaves = [torch.tensor(part, requires_grad=True) for part in parts]
    expected = theirs(*leaves, *map(torch.tensor, target))
    expected.backward()
    value, gradients = ours(prediction, *target)
    np.testing.assert_allclose(value, expected.item(), rtol=WITHIN, atol=WITHIN)
    if not isinstance(prediction, tuple):
        gradients = (gradients,)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=WITHIN, atol=WITHIN)


class Drawn:
    """Outputs (N, C, d1, …), labels, shares of the classes, and weights of the classes or None."""

    def __init__(self, data: st.DataObject, most_axes: int = 2) -> None:
        self.rng = data.draw(seeds)
        rng, n = self.rng, data.draw(st.integers(1, 6))
        self.classes = data.draw(st.integers(2, 7))
        more = tuple(data.draw(st.lists(st.integers(1, 4), max_size=most_axes)))
        self.z = 3 * rng.normal(size=(n, self.classes, *more))
        self.labels = rng.integers(0, self.classes, (n, *more))
        shares = rng.dirichlet(np.ones(self.classes), (n, *more))
        self.shares = np.moveaxis(shares, -1, 1)
        weight = rng.uniform(0.1, 3, self.classes)
        self.weight = data.draw(st.sampled_from([None, weight]))

    def some_ignored(self, label: int | None) -> Any:
        if label is None:
            return self.labels
        chosen = np.where(self.rng.random(self.labels.shape) < 0.3, label, self.labels)
        if (chosen == label).all():
            chosen.flat[0] = 1  # PyTorch's mean of nothing is nan
        return chosen

    def theirs(self) -> Any:
        return None if self.weight is None else torch.tensor(self.weight)


@given(data=st.data(), reduction=reductions, smoothing=smoothings, left_out=ignored)
def test_cross_entropy(
    data: st.DataObject, reduction: str, smoothing: float, left_out: int | None
) -> None:
    d = Drawn(data)
    more = {} if left_out is None else {"ignore_index": left_out}
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    ours = nn.CrossEntropyLoss(weight=d.weight, **options, **more)
    theirs = torch.nn.CrossEntropyLoss(weight=d.theirs(), **options, **more)
    compare(ours, theirs, d.z, d.some_ignored(left_out))
    ours = nn.CrossEntropyLoss(weight=d.weight, **options)
    theirs = torch.nn.CrossEntropyLoss(weight=d.theirs(), **options)
    compare(ours, theirs, d.z, d.shares)


@given(data=st.data(), reduction=reductions, left_out=ignored)
def test_negative_log_likelihood(data: st.DataObject, reduction: str, left_out: int | None) -> None:
    d = Drawn(data)
    more: dict[str, Any] = {} if left_out is None else {"ignore_index": left_out}
    ours = nn.NLLLoss(reduction, weight=d.weight, **more)
    theirs = torch.nn.NLLLoss(weight=d.theirs(), reduction=reduction, **more)
    compare(ours, theirs, d.z, d.some_ignored(left_out))


@given(
    data=st.data(),
    reduction=reductions,
    p=st.integers(1, 2),
    margin=st.floats(0, 2),
)
def test_multi_margin(data: st.DataObject, reduction: str, p: int, margin: float) -> None:
    d = Drawn(data, most_axes=0)
    ours = nn.MultiMarginLoss(reduction, p=p, margin=margin, weight=d.weight)
    theirs = torch.nn.MultiMarginLoss(p, margin, d.theirs(), reduction=reduction)
    compare(ours, theirs, d.z, d.labels)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@given(
    data=st.data(),
    reduction=st.sampled_from(["mean", "sum", "batchmean"]),
    log_target=st.booleans(),
)
def test_divergence(data: st.DataObject, reduction: str, log_target: bool) -> None:
    d = Drawn(data)
    target = np.log(d.shares) if log_target else d.shares
    theirs = torch.nn.KLDivLoss(reduction=reduction, log_target=log_target)
    compare(nn.KLDivLoss(reduction, log_target=log_target), theirs, d.z, target)


@given(data=st.data(), reduction=reductions, beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_smooth_l1(data: st.DataObject, reduction: str, beta: float) -> None:
    d = Drawn(data)
    theirs = torch.nn.SmoothL1Loss(reduction=reduction, beta=beta)
    target = d.z + d.rng.integers(-4, 5, d.z.shape) / 2  # possibly at kinks
    compare(nn.SmoothL1Loss(reduction, beta=beta), theirs, d.z, target)


def embeddings(data: st.DataObject, count: int) -> tuple[Any, ...]:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 8)))
    return tuple(data.draw(seeds).normal(size=(count, *shape)))


@given(data=st.data(), reduction=reductions, margin=st.floats(-1, 1))
def test_cosine_embedding(data: st.DataObject, reduction: str, margin: float) -> None:
    pair = embeddings(data, 2)
    target = data.draw(seeds).choice([-1, 1], len(pair[0]))
    theirs = torch.nn.CosineEmbeddingLoss(margin, reduction=reduction)
    compare(nn.CosineEmbeddingLoss(reduction, margin=margin), theirs, pair, target)


@given(
    data=st.data(),
    reduction=reductions,
    margin=st.floats(0.1, 3),
    p=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    swap=st.booleans(),
    equal=st.booleans(),
)
def test_triplet_margin(
    data: st.DataObject, reduction: str, margin: float, p: float, swap: bool, equal: bool
) -> None:
    anchor, positive, negative = embeddings(data, 3)
    options: dict[str, Any] = {"margin": margin, "p": p, "swap": swap, "reduction": reduction}
    if equal:  # at equal distances from positive and anchor
        anchor, positive = np.round(2 * anchor), np.round(2 * positive)
        negative = (anchor + positive) / 2
        options["eps"] = 0.0
    compare(
        nn.TripletMarginLoss(**options),
        torch.nn.TripletMarginLoss(**options),
        (anchor, positive, negative),
    )
