"""A classifier with scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets

from xbp import nn, optim
from xbp.arguments import choice, number
from xbp.backend import Array, Backend, to_numpy
from xbp.errors import InputError
from xbp.estimators.network import NeuralNet
from xbp.models.mlp import Activation
from xbp.parallel import Group


class NeuralNetClassifier(ClassifierMixin, NeuralNet):  # type: ignore[misc]
    """A dense network that classifies: softmax and cross-entropy on one logit for each class.

    Two classes have two logits as well, which is equivalent to one: softmax(z)₁ = σ(z₁ - z₀), the
    sigmoid of a single logit z₁ - z₀.

    See `NeuralNet` for its parameters. Labels may be numbers, booleans or strings.

    Parameters
    ----------
    class_weight : mapping, "balanced" or None
        A factor of each sample's weight, by its class; "balanced" is n_samples / (n_classes ·
        n_samples of the class), which gives all classes the same total weight.

    Attributes
    ----------
    classes_ : array (n_classes,)
        The labels, sorted; the columns of `predict_proba`.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.estimators import NeuralNetClassifier
    >>> X, y = np.array([[-2.0], [-1.0], [1.0], [2.0]]), ["cold", "cold", "warm", "warm"]
    >>> classifier = NeuralNetClassifier(8, learning_rate=0.1, max_iter=50, random_state=0)
    >>> classifier.fit(X, y).predict([[-3.0], [3.0]]).tolist()
    ['cold', 'warm']
    """

    loss = nn.CrossEntropyLoss()

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Activation | Sequence[str | Activation] = "relu",
        *,
        dropout: float | Sequence[float] = 0.0,
        optimizer: str | Callable[..., optim.Optimizer] = "adam",
        learning_rate: float | Callable[[int], float] = 0.001,
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        max_iter: int = 200,
        tol: float = 0.0001,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        backend: str | Backend | None = None,
        dtype: str | None = None,
        verbose: bool = False,
        warm_start: bool = False,
        group: str | Group | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            dropout=dropout,
            optimizer=optimizer,
            learning_rate=learning_rate,
            alpha=alpha,
            batch_size=batch_size,
            max_iter=max_iter,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            random_state=random_state,
            backend=backend,
            dtype=dtype,
            verbose=verbose,
            warm_start=warm_start,
            group=group,
        )
        self.class_weight = class_weight

    def _learn(self, y: NDArray[Any]) -> int:
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        return len(self.classes_)

    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        unknown = np.setdiff1d(y, self.classes_).tolist()
        if unknown:
            msg = f"there is no class {unknown[0]!r}; the classes are {self.classes_.tolist()}"
            raise InputError(msg)
        return np.searchsorted(self.classes_, y)

    def _weights(self, y: NDArray[Any]) -> NDArray[Any] | None:
        if self.class_weight is None:
            return None
        if not isinstance(self.class_weight, Mapping):
            choice("class_weight", self.class_weight, ("balanced",))
            weight = compute_sample_weight("balanced", y)
        else:
            classes = self.classes_.tolist()  # not an array, which compares entry by entry
            unknown = [label for label in self.class_weight if label not in classes]
            if unknown:
                msg = f"class_weight has a class {unknown[0]!r}; the classes are {classes}"
                raise InputError(msg)
            weight = [
                number(f"class_weight[{label!r}]", self.class_weight.get(label, 1), least=0)
                for label in classes
            ]
            weight = np.asarray(weight)[y]
        return np.asarray(weight, dtype=np.float64)

    def _score_of(self, outputs: Array, y: NDArray[Any], weight: NDArray[Any] | None) -> float:
        return float(accuracy_score(y, to_numpy(outputs).argmax(axis=1), sample_weight=weight))

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one more epoch on these data.

        Parameters
        ----------
        X, y
            As in `fit`, but some classes may be absent.
        classes : array-like
            All labels of all calls; needed in the first call, unless `fit` was called before.
        sample_weight : array-like (n_samples,), optional
            As in `fit`.

        Raises
        ------
        ValueError
            As in `fit`; or a label is not one of the classes, or there are no classes; or
            `class_weight` is "balanced", which needs all data at once.
        """
        if self.class_weight is not None and not isinstance(self.class_weight, Mapping):
            msg = (
                f"class_weight={self.class_weight!r} needs all data at once; give partial_fit a "
                "mapping of the classes to their weights"
            )
            raise InputError(msg)
        known = None if classes is None else np.unique(classes)
        if not hasattr(self, "n_iter_"):
            if known is None:
                msg = "the first partial_fit needs classes, all labels that will ever come"
                raise InputError(msg)
        elif known is not None and not np.array_equal(known, self.classes_):
            msg = f"classes must stay {self.classes_.tolist()}, got {known.tolist()}"
            raise InputError(msg)
        return self._partial_fit(X, y, sample_weight, known)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The probability of each class, (n_samples, n_classes)."""
        return to_numpy(nn.Softmax()(self._outputs(X)))

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """The logarithm of `predict_proba`, accurate even where that rounds to 0 or 1."""
        return to_numpy(nn.LogSoftmax()(self._outputs(X)))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sample."""
        largest = to_numpy(self._outputs(X)).argmax(axis=1)
        return np.asarray(self.classes_[largest])
