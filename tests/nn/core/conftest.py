"""The backends of these tests: numpy by default; the fixture `backend` is each one that works."""

from typing import Any

import pytest

import xbp
from xbp.backend import Backend, find_backend, why_unavailable


@pytest.fixture(params=xbp.available_backends())
def backend(request: pytest.FixtureRequest) -> Backend:
    return find_backend(request.param)


@pytest.fixture
def strict() -> Backend:
    reason = why_unavailable("array_api_strict")
    if reason is not None:
        pytest.skip(reason)
    return find_backend("array_api_strict")


@pytest.fixture(autouse=True)
def _layers_are_born_on_numpy() -> Any:
    with xbp.use_backend("numpy"):
        yield
