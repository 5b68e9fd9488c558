"""scikit-learn's multilayer perceptron as a side of a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Side:
    def __init__(self, options: dict[str, Any]) -> None:
        import sklearn

        self.versions = {"scikit-learn": sklearn.__version__}

    def array(self, host: NDArray[Any]) -> NDArray[Any]:
        return host

    def wait(self, value: Any) -> None:
        pass

    def to_host(self, value: Any) -> NDArray[Any]:
        return np.asarray(value)

    def network(self, model: list[Any], optimizer: str, lr: float) -> Network:
        return Network(model, optimizer, lr)


class Network:
    """A step is one call of `partial_fit`, with the batch as `batch_size`."""

    def __init__(self, model: list[Any], optimizer: str, lr: float) -> None:
        self.sizes, self.rule, self.lr = model[1:], optimizer, lr

    def load(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self.weights = weights
        self.model: Any = None

    def step(self, x: NDArray[Any], y: NDArray[Any]) -> float:
        if self.model is None:
            self.model = self._make(x, y)
        self.model.partial_fit(x, y)
        return float(self.model.loss_)

    def _make(self, x: NDArray[Any], y: NDArray[Any]) -> Any:
        from sklearn.neural_network import MLPClassifier
        from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

        model = MLPClassifier(
            *(self.sizes[1:-1],),
            solver=self.rule,
            learning_rate_init=self.lr,
            alpha=0.0,
            batch_size=len(x),
            momentum=0.0,
            nesterovs_momentum=False,
            shuffle=False,
        )
        model.partial_fit(x, y, classes=np.arange(self.sizes[-1]))
        names = sorted({name.partition(".")[0] for name in self.weights}, key=int)
        for index, name in enumerate(names):  # in place, as the optimizer holds the arrays
            model.coefs_[index][...] = self.weights[f"{name}.weight"].T
            model.intercepts_[index][...] = self.weights[f"{name}.bias"]
        if self.rule == "adam":  # forgets the step that made the arrays
            model._optimizer = AdamOptimizer(model.coefs_ + model.intercepts_, self.lr)
        return model
