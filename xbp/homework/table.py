"""All exercises of the package."""

from xbp.homework.images import CONV2D, MAX_POOL
from xbp.homework.layers import BATCH_NORM, LINEAR, RNN, SIGMOID, SOFTMAX
from xbp.homework.losses import CROSS_ENTROPY, MSE
from xbp.homework.optimizers import ADAM

EXERCISES = {
    exercise.name: exercise
    for exercise in (
        *(LINEAR, SIGMOID, SOFTMAX, MSE, CROSS_ENTROPY),
        *(CONV2D, MAX_POOL, BATCH_NORM, RNN, ADAM),
    )
}
"""Each exercise by its name, in the order in which they are solved."""
