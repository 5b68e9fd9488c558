"""The arithmetic of the tables."""

import math

import pytest

from xbp.benchmarks.comparison import deviation, spread
from xbp.benchmarks.tables import add_floors
from xbp.benchmarks.workloads import flop, step_products, traffic


class TestNumbers:
    def test_flop_of_lenet5(self):
        # Published figures of the layers: multiplications forward, an image.
        forward = 117_600 + 240_000 + 48_000 + 10_080 + 840
        assert flop("infer", ["lenet5"], 7) == 7 * 2 * forward
        assert flop("train", ["lenet5"], 1) == 2 * (3 * forward - 117_600) == 2_263_920

    def test_flop_of_an_mlp_is_that_of_its_products(self):
        shapes = step_products([784, 4096, 4096, 10], 256)
        total = sum(2 * m * k * n for m, k, n, _ in shapes)
        assert flop("train", ["mlp", 784, 4096, 4096, 10], 256) == total
        assert len(shapes) == 8

    def test_flop_of_an_rnn(self):
        # One image: 28 times 28 × 128 from the input and 128 × 128 from the state, then 128 × 10.
        cell, state, last = 28 * 28 * 128, 28 * 128 * 128, 1280
        assert flop("train", ["rnn", 28, 128, 10], 1) == 2 * (2 * cell + 3 * (state + last))

    def test_traffic(self):
        image, weights = 4 * 784 + 8, 4 * 61_706
        assert traffic("train", ["lenet5"], 64) == 64 * image + 2 * weights
        assert traffic("infer", ["lenet5"], 1) == image + weights

    def test_floor_is_the_longer_of_two(self):
        rows = [
            {"workload": "sgemm", "label": "1 thread", "flop": 1, "medians": {"xbp": 9.0}},
            {"workload": "sgemm", "label": "2 threads", "flop": 100, "medians": {"a": 5.0, "b": 4}},
            {"workload": "copy", "label": "2 threads", "bytes": 10, "medians": {"xbp": 2.0}},
            {"workload": "rnn", "label": "8", "flop": 1000, "bytes": 50, "medians": {"xbp": 20.0}},
            {"workload": "rnn", "label": "9", "flop": 100, "bytes": 50, "medians": {"xbp": 20.0}},
            {"workload": "mlp-products", "label": "8", "flop": 9, "medians": {"a": 3.0, "b": 4.0}},
            {"workload": "mlp", "label": "8", "flop": 9, "bytes": 0, "medians": {"xbp": 6.0}},
        ]
        add_floors(rows, "2 threads", "2 threads")
        assert [row["floor"] for row in rows if "floor" in row] == [40.0, 10.0, 0.36]
        assert [row["products"] for row in rows if "products" in row] == [3.0]
        assert rows[-1]["products"] == 3.0

    def test_spread_compares_within_a_round(self):
        assert spread([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == [3.0, 2.0, 4.0]
        assert spread([2.0, None], [None, 1.0]) is None  # a goal not reached
        assert spread([2.0, 3.0], [None, 1.0]) == [3.0, 3.0, 3.0]

    @pytest.mark.parametrize(
        ("values", "apart"),
        [
            ([2.0, 4.0], 0.0),
            ([2.0, 5.0], 0.25),
            ([2.0, math.nan], math.inf),
            ([3, math.nan], math.inf),
        ],
    )
    def test_deviation(self, values, apart):
        assert deviation(values, [2.0, 4.0]) == apart
