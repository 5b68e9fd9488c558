"""Types of arrays, pairs and words in the definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


Pair = tuple[int, int]


Words = tuple[int, int, int, int]
