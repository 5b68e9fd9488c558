import sys
from collections.abc import Iterator

import pytest

from xbp import accelerators


@pytest.fixture(autouse=True, scope="module")
def _no_array_is_too_small_to_accelerate() -> Iterator[None]:
    """Accelerators decline arrays for which numpy is faster (their LEAST_…); they must be
    correct there too, and small arrays show most faults.
    """
    with pytest.MonkeyPatch.context() as patch:
        for accelerator in accelerators.registered():
            module = sys.modules[accelerator.function.__module__]
            for name in [name for name in vars(module) if name.startswith("LEAST_")]:
                patch.setattr(module, name, 1)
        yield
