"""Two parameters of an optimizer."""

import numpy as np
import pytest

from xbp import nn


@pytest.fixture
def two() -> list[nn.Parameter]:
    return [nn.Parameter(np.array([1.0, 2.0])), nn.Parameter(np.array([[3.0]]))]
