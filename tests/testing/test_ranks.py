"""The certificate of ranks: it passes what is right, and finds what is not."""

import json
from typing import Any

import numpy as np
import pytest
from parallel.shares import Thread, by_threads

from xbp.parallel import Alone
from xbp.testing import ranks
from xbp.testing.certificate import Certificate, Row


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, the last one with two samples."""
    monkeypatch.setattr(ranks, "SAMPLES", 130)


def certify(work: type[Thread], size: int = 2, **options: Any) -> list[list[Row]]:
    """The rows of each rank of a group of threads, of one epoch."""

    def of_rank(group: Thread) -> list[Row]:
        group.__class__ = work
        return ranks.certify_ranks(group, "numpy", epochs=1, **options)

    return by_threads(size, of_rank)


@pytest.mark.parametrize(("name", "size"), [("dropout", 2), ("batch norm", 3)])
def test_ranks_that_compute_what_one_does_pass(name: str, size: int) -> None:
    rows, *others = certify(Thread, size, only=name)
    assert [row.dtype for row in rows] == ["float32", "float64"]
    for row in rows:
        assert row.passed and row.bits
        assert row.forward is not None and 0 <= row.forward < 1  # losses may agree in all digits
        assert row.state is not None and 0 < row.state < 1
        assert row.name.startswith(f"{size}: ") and name in row.name
    certificate = Certificate(rows, {}, {"numpy": {}}, size)
    assert "2 rows are within" in certificate.verdict()
    page = certificate.as_markdown()
    assert page.startswith(f"# Parity of {size} ranks with one process of numpy in float64: numpy")
    assert "| item | dtype | cases | forward | state | bits | waits | result |" in page
    assert json.loads(certificate.as_json())["ranks"] == size
    assert all(row.bits for found in others for row in found)


class Rough(Thread):
    """A group by which some gradients are one part in a hundred too large."""

    def sum_(self, array: Any) -> None:
        super().sum_(array)
        if array.size > 1000:
            array[:100] *= np.asarray(1.01, array.dtype)


def test_a_small_error_of_the_sums_fails() -> None:
    rows, _ = certify(Rough, only="dropout")
    assert not any(row.passed for row in rows)
    assert all(row.bits for row in rows)
    assert "LeNet-5 with dropout, 1 epochs: on numpy in float32" in rows[0].failures[0]


class Differing(Alone):
    """Three ranks, of which the last has other weights."""

    size = 3

    def sum_(self, table: Any) -> None:
        table[1:] = table[0]
        table[2, 1] ^= 1


def test_other_bits_on_one_rank_fail() -> None:
    found = ranks._same_bits(
        {"the loss": [np.ones(2)], "weight": [np.zeros(3)]},
        ranks.Way("float32", "float32", group=Differing()),
    )
    assert [each.problem for each in found] == [
        "",
        "weight differs between rank 0 and rank 2",
    ]
