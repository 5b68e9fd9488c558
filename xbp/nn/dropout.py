"""Dropout."""

from __future__ import annotations

from xbp.arguments import number
from xbp.backend import Array, array_namespace
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng
from xbp.nn.layer import Layer
from xbp.random import as_stream


class Dropout(Layer):
    """In training y = m ∘ x, with each m independently 0 at probability p, else 1/(1 - p).

    Then E[y] = x, so that inference is y = x. As m is a constant of the call, ∂L/∂x = m ∘ ∂L/∂y.
    (Srivastava et al. 2014, scaled in training rather than in inference: "inverted dropout".)

    Parameters
    ----------
    p : float, default 0.5
        The probability that an entry is dropped.

    Notes
    -----
    The mask comes from the forward's `rng`, bit for bit the same on every backend and for every
    dtype: an entry is kept where its 32 random bits, as an integer, are at least p·2³².

    Raises
    ------
    InputError
        p is not from 0 to 1; in training, `rng` is None, which would give irreproducible masks.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> y, backward = nn.Dropout(0.5).forward(np.ones(6), training=True, rng=0)
    >>> set(y.tolist()) == {0.0, 2.0} and backward(np.ones(6)).tolist() == y.tolist()
    True
    """

    complex_gradients = True

    def __init__(self, p: float = 0.5) -> None:
        self.p = number("p", p, least=0, most=1)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        if not training or self.p == 0:
            return x, self.checked(xp, x.shape, lambda dy: dy)
        mask = self.mask(x.shape, like=x, rng=rng)

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, mask.shape)
            return mask * dy

        return mask * x, backward

    def mask(self, shape: tuple[int, ...], *, like: Array, rng: Rng) -> Array:
        """m of a shape, on the device and in the dtype of `like`.

        Raises
        ------
        InputError
            `rng` is None.
        """
        xp = array_namespace(like)
        stream = as_stream(rng)
        if stream is None:
            msg = (
                f"{self} draws its mask in training from rng, which is None; give the forward of "
                "the whole model training=True, rng=xbp.random.RandomStream(seed), and hand both "
                "on in a forward of your own"
            )
            raise InputError(msg)
        kept = stream.bits(shape, like=like) >= round(self.p * 2**32)
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        return scale * xp.astype(kept, like.dtype)

    def options(self) -> str:
        return f"p={self.p:g}"
