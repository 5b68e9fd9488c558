import importlib.util
from collections.abc import Iterator

import pytest

import xbp.backend

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("xbp", deadline=None, max_examples=20, derandomize=True)
    settings.load_profile("xbp")


@pytest.fixture(autouse=True)
def _same_backend_after_each_test() -> Iterator[None]:
    before = xbp.backend._default
    yield
    xbp.backend._default = before
