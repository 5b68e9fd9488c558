from pathlib import Path

import pytest
from accelerators.kernels.networks import few_threads  # noqa: F401
from accelerators.kernels.reference import _in_use, dtype, machine, tuned_by  # noqa: F401
from nightly import NIGHTLY

BOTH = {"test_kernels_together.py", "test_kernels_passes.py", "test_kernels_rows.py"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """By default each kernel is compiled for float64 by the tests of all of them; nightly by all.

    There it is compared within tight bounds. Other shapes are programs of their own, and half of
    the time of a first run is their compilation.
    """
    if NIGHTLY:
        return
    here = Path(__file__).parent
    kept, left_out = [], []
    for item in items:
        long = item.path.parent == here and item.path.name not in BOTH and "float64" in item.name
        (left_out if long else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
