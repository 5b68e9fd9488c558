"""A recurrent network that classifies texts."""

from __future__ import annotations

from typing import Any

from xbp import nn
from xbp.arguments import integer
from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng
from xbp.nn.embedding import ordered
from xbp.random import Seed, as_stream, generator

PADDING = 0
"""The token for padding of shorter texts in a batch."""


class TextClassifier(nn.Layer):
    """Logits of a text's class from the final states of an LSTM.

    Vectors of the tokens go through dropout and an `LSTM`. The features of a text are the state of
    the last layer after the last token; with `bidirectional`, also the state of the reverse layer
    after the first token. They go through dropout and a `Linear`.

    Padding, token 0, is skipped at any place, without a change of the state. So the output for a
    text does not depend on the length to which it is padded (up to rounding, as a library may add
    in another order for another shape). The features of a text without tokens are 0.

    Parameters
    ----------
    vocabulary : int
        The number of tokens, with padding.
    num_classes : int
    width : int, default 64
        Features of each token.
    hidden : int, default 64
        Features of the state.
    layers : int, default 1
    bidirectional : bool, default False
    dropout : float, default 0
        The probability for the tokens' vectors, between layers, and for the features.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Attributes
    ----------
    tokens : Embedding
    lstm : LSTM
    head : Linear

    Notes
    -----
    Input (N, T) of integers, output (N, num_classes): logits.

    Raises
    ------
    InputError
        In the constructor for values out of range; in a call for another shape, and for tokens
        that `Embedding` refuses.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import models
    >>> model = models.TextClassifier(10, 2, dtype="float64", rng=0)
    >>> logits = model(np.array([[3, 1, 4, 0, 0], [3, 1, 4, 1, 5]]))
    >>> bool(np.allclose(logits[0], model(np.array([[3, 1, 4]]))[0], rtol=1e-12))
    True
    """

    def __init__(
        self,
        vocabulary: int,
        num_classes: int,
        *,
        width: int = 64,
        hidden: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        rng = generator(rng)
        self.tokens = nn.Embedding(vocabulary, width, PADDING, dtype=dtype, rng=rng)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            *(width, hidden, layers),
            bidirectional=bidirectional,
            dropout=dropout,
            dtype=dtype,
            rng=rng,
        )
        features = len(self.lstm.directions) * self.lstm.hidden_size
        classes = integer("num_classes", num_classes, least=1)
        self.head = nn.Linear(features, classes, dtype=dtype, rng=rng)
        self.arguments = {
            "vocabulary": self.tokens.num_embeddings,
            "num_classes": classes,
            "width": self.tokens.embedding_dim,
            "hidden": self.lstm.hidden_size,
            "layers": self.lstm.num_layers,
            "bidirectional": bool(bidirectional),
            "dropout": self.dropout.p,
        }

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, H = self.check_input(x, integers=True), self.lstm.hidden_size
        if x.ndim != 2 or x.shape[1] == 0:
            msg = (
                f"{type(self).__name__} expects tokens (N, T) of at least one time step, "
                f"got shape {tuple(x.shape)}"
            )
            raise InputError(msg)
        mode: dict[str, Any] = {"training": training, "rng": as_stream(rng) if training else None}
        vectors, embed_backward = self.tokens.forward(x, **mode)
        vectors, undrop_vectors = self.dropout.forward(vectors, **mode)
        padding = ordered(xp, x) == PADDING
        (y, _), read_backward = self.lstm.run(vectors, padding_mask=padding, **mode)
        # At the ends of time the outputs are the final states, as padding repeats the state.
        features = y[:, -1, :]
        if y.shape[2] > H:
            features = xp.concat([y[:, -1, :H], y[:, 0, H:]], axis=1)
        features, undrop_features = self.dropout.forward(features, **mode)
        logits, head_backward = self.head.forward(features, **mode)

        def backward(dlogits: Array) -> None:
            dfeatures = undrop_features(head_backward(dlogits))
            dy = xp.zeros_like(y)
            dy[:, -1, :H] = dfeatures[:, :H]
            if y.shape[2] > H:
                dy[:, 0, H:] = dfeatures[:, H:]
            dvectors, _ = read_backward(dy)
            embed_backward(undrop_vectors(dvectors))

        return logits, backward

    def options(self) -> str:
        shown = list(self.arguments.items())
        sizes = [str(value) for _, value in shown[:2]]
        return ", ".join([*sizes, *(f"{name}={value}" for name, value in shown[2:])])
