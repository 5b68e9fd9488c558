"""Reference functions for the tests, each a direct transcription of its textbook definition.

Everything is float64 and written as loops over indices, so that a function can be believed by
reading it; speed does not matter, and no function here shares code or tricks with the library
under test. Image arrays are (N, C, H, W) and pairs are (height, width). Arguments are taken to be
finite and valid.

Each file's public functions are names of this package.
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
