"""A regressor with scikit-learn's interface."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from xbp import nn
from xbp.backend import Array, to_numpy
from xbp.estimators.network import NeuralNet


class NeuralNetRegressor(RegressorMixin, NeuralNet):  # type: ignore[misc]
    """A dense network for regression: linear outputs, trained on their mean squared error.

    See `NeuralNet` for the parameters. Scale targets whose standard deviation is far from 1, for
    instance by ``sklearn.compose.TransformedTargetRegressor``.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.estimators import NeuralNetRegressor
    >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
    >>> regressor = NeuralNetRegressor(32, learning_rate=0.01, max_iter=300, random_state=0)
    >>> regressor.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.95
    True
    """

    loss = nn.MSELoss()

    def _learn(self, y: NDArray[Any]) -> int:
        self._flat = y.ndim == 1
        return 1 if self._flat else int(y.shape[1])

    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(y, dtype=self.dtype_).reshape(len(y), -1)

    def _score_of(self, outputs: Array, y: NDArray[Any], weight: NDArray[Any] | None) -> float:
        return float(r2_score(y, to_numpy(outputs), sample_weight=weight))

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one more epoch on these data.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predictions, (n_samples,) or (n_samples, n_outputs), like the targets of `fit`."""
        y = to_numpy(self._outputs(X))
        return y.ravel() if self._flat else y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
