"""Reference functions for the tests, each a direct transcription of its textbook definition.

Everything is float64 and written as loops over indices, so that reading a function is enough to
trust it. Speed does not matter. No function shares code with the library under test. Images are
(N, C, H, W), pairs are (height, width). Arguments must be finite and valid.

The public functions of all files are names of this package.
"""

# ruff: noqa: F403
from xbp.testing.oracles.activations import *
from xbp.testing.oracles.layers import *
from xbp.testing.oracles.losses import *
from xbp.testing.oracles.normalization import *
from xbp.testing.oracles.numbers import *
from xbp.testing.oracles.optimizers import *
from xbp.testing.oracles.recurrent import *
from xbp.testing.oracles.schedules import *
from xbp.testing.oracles.types import *
