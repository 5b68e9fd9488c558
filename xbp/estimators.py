"""Dense networks as scikit-learn's estimators: in pipelines, grid searches, cross-validation.

scikit-learn is imported here and nowhere else in xbp, and comes with the ``sklearn`` extra. So
``import xbp`` does not give this module: write ``from xbp.estimators import NeuralNetClassifier``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xbp import nn, optim
from xbp.arguments import choice, integer, number
from xbp.backend import Array, Backend, dtype_name, to_numpy
from xbp.errors import InputError
from xbp.models import MLP
from xbp.models.mlp import Activation
from xbp.random import generator
from xbp.training import Callback, EarlyStopping, Trainer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    msg = f"xbp.estimators needs scikit-learn 1.6 or later ({error}): pip install scikit-learn"
    raise ImportError(msg) from None

__all__ = ["NeuralNetClassifier", "NeuralNetRegressor"]


class NeuralNet(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators share: a `models.MLP`, trained by a `Trainer`.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        The units of each hidden layer; ``()`` makes the model linear.
    activation : str, callable, or sequence with one a hidden layer; default "relu"
        The name of any elementwise layer of `xbp.nn` in lower case (``"sigmoid"``, ``"gelu"``…),
        or what `models.MLP` takes.
    dropout : float, or sequence with one a hidden layer; default 0
    optimizer : str or callable, default "adam"
        The name of any optimizer of `xbp.optim` in lower case, or a function that makes one, such
        as ``functools.partial(optim.SGD, momentum=0.9)``.
    learning_rate : float or schedule, default 0.001
        The optimizer's ``lr``. 0.001 suits Adam and its kin; Adadelta wants about 1.
    alpha : float, default 0.0001
        The optimizer's ``weight_decay``, on all parameters: an L2 penalty ½ alpha ‖p‖², except
        for AdamW, where the decay is decoupled. (scikit-learn's MLP divides its alpha by the size
        of the batch, and leaves biases alone.)
    batch_size : int or "auto", default "auto"
        "auto" is the smaller of 200 and the number of samples.
    max_iter : int, default 200
        The number of epochs, unless training ends earlier.
    tol : float, default 0.0001
    n_iter_no_change : int, default 10
        Training ends when the loss has not become better by more than `tol` for so many epochs.
    early_stopping : bool, default False
        Whether that is the loss on a share of the data which is not trained on; the model then
        keeps the parameters of its best epoch.
    validation_fraction : float, default 0.1
        That share; a classifier's is stratified.
    random_state : int, RandomState or None
        Seed of the initial weights, of the shuffles and masks, and of the validation share.
    backend : str, Backend or None
        Where to train; None is the backend that is current in `fit`.
    dtype : "float32", "float64" or None
        None is that of X: float32, or float64 for anything else.
    verbose : bool, default False
        Whether to show a progress bar.

    Attributes
    ----------
    model_ : models.MLP
    trainer_ : Trainer
    loss_curve_ : list of float
        The mean loss of each epoch.
    n_iter_ : int
        How many epochs have been made.
    n_features_in_ : int
    feature_names_in_ : array of str
        Where X had named columns.
    """

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
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.backend = backend
        self.dtype = dtype
        self.verbose = verbose

    # --- what the two differ in ---

    loss: nn.Loss

    def _learn(self, y: NDArray[Any]) -> int:
        """Learn from all targets what values they have; returns the number of outputs."""
        raise NotImplementedError

    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        """What the loss takes for y."""
        raise NotImplementedError

    # --- fitting ---

    def fit(self, X: Any, y: Any) -> Self:
        """Train from new initial weights.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        y : array-like (n_samples,), of a regressor also (n_samples, n_outputs)

        Raises
        ------
        ValueError
            A parameter is out of range, or the data do not fit (then by scikit-learn).
        NonFiniteError
            The loss became infinite or nan.
        """
        epochs = integer("max_iter", self.max_iter, least=1)
        share = number("validation_fraction", self.validation_fraction, least=0, most=1)
        patience = integer("n_iter_no_change", self.n_iter_no_change, least=1)
        tol = number("tol", self.tol, least=0)
        X, y = self._admit(X, y, reset=True)
        outputs = self._learn(y)
        y, random_state = self._targets(y), self._start(outputs)
        if not self.early_stopping:
            stop = EarlyStopping("loss", patience, tol, restore_best=False)
            return self._train(X, y, epochs, callbacks=[stop])
        X, X_held, y, y_held = train_test_split(
            X,
            y,
            test_size=share,
            random_state=random_state,
            stratify=y if isinstance(self, ClassifierMixin) else None,
        )
        stop = EarlyStopping("val_loss", patience, tol)
        return self._train(X, y, epochs, (X_held, y_held), [stop])

    def _partial_fit(self, X: Any, y: Any, known: Any = None) -> Self:
        """One epoch; the first call learns about the targets from `known`, or else from y."""
        first = not hasattr(self, "n_iter_")
        X, y = self._admit(X, y, reset=first)
        outputs = self._learn(y if known is None else known) if first else 0
        y = self._targets(y)  # what is refused here has started nothing
        if first:
            self._start(outputs)
        return self._train(X, y, epochs=1)

    def _admit(self, X: Any, y: Any, *, reset: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """X in the model's dtype, and y; `reset` chooses that dtype, and how many features."""
        dtype: Any = [np.float64, np.float32]
        if not reset:
            dtype = self.dtype_
        elif self.dtype is not None:
            dtype = choice("dtype", dtype_name(self.dtype), ("float32", "float64"))
        free = isinstance(self, RegressorMixin)  # then y holds numbers, in one column or more
        X, y = validate_data(
            self, X, y, reset=reset, dtype=dtype, multi_output=free, y_numeric=free
        )
        self.dtype_: str = X.dtype.name
        return X, y

    def _start(self, outputs: int) -> np.random.RandomState:
        """Make the network and its trainer; returns the generator that their seed came from."""
        self.__dict__.pop("n_iter_", None)  # the sign of being fitted: set when training has ended
        random_state: np.random.RandomState = check_random_state(self.random_state)
        rng = generator(int(random_state.randint(2**31 - 1)))
        hidden = self.hidden_layer_sizes
        self.model_ = MLP(
            self.n_features_in_,
            *(hidden if isinstance(hidden, list | tuple | np.ndarray) else [hidden]),
            outputs,
            activation=_activation(self.activation),
            dropout=self.dropout,
            dtype=self.dtype_,
            rng=rng,
        )
        if self.backend is not None:
            self.model_.to(self.backend)
        make = _named("optimizer", self.optimizer, optim, optim.Optimizer)
        decay = number("alpha", self.alpha, least=0)
        optimizer = make(self.model_.parameters(), lr=self.learning_rate, weight_decay=decay)
        self.trainer_ = Trainer(self.model_, self.loss, optimizer, rng=rng)
        self.loss_curve_: list[float] = []
        return random_state

    def _train(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        epochs: int,
        validation: tuple[NDArray[Any], NDArray[Any]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Self:
        size = min(200, len(X)) if self.batch_size == "auto" else self.batch_size
        size = integer("batch_size", size, least=1)
        verbose = bool(self.verbose)
        history = self.trainer_.fit(X, y, epochs, size, validation, callbacks, verbose=verbose)
        self.loss_curve_ += history["loss"]
        self.n_iter_ = len(self.loss_curve_)
        return self

    def _outputs(self, X: Any) -> Array:
        """The network's outputs for X, where the network lives."""
        check_is_fitted(self, "n_iter_")
        return self.trainer_.predict(validate_data(self, X, reset=False, dtype=self.dtype_))


class NeuralNetClassifier(ClassifierMixin, NeuralNet):  # type: ignore[misc]
    """A dense network that classifies: softmax and cross-entropy on one logit for each class.

    Two classes are no exception, so that there is one path for all of them. Nothing is lost by
    it: softmax(z)₁ = σ(z₁ - z₀), which is the sigmoid of a single logit z₁ - z₀.

    See `NeuralNet` for the parameters. Labels may be numbers, booleans or strings.

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

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Train for one epoch on these data, going on from where the last call ended.

        Parameters
        ----------
        X, y
            As in `fit`, but some classes may be absent.
        classes : array-like
            All labels that will ever come; needed in the first call, unless `fit` came before it.

        Raises
        ------
        ValueError
            As in `fit`; or a label is not one of the classes, or there are no classes.
        """
        known = None if classes is None else np.unique(classes)
        if not hasattr(self, "n_iter_"):
            if known is None:
                msg = "the first partial_fit needs classes, all labels that will ever come"
                raise InputError(msg)
        elif known is not None and not np.array_equal(known, self.classes_):
            msg = f"classes must stay {self.classes_.tolist()}, got {known.tolist()}"
            raise InputError(msg)
        return self._partial_fit(X, y, known)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The probability of each class, (n_samples, n_classes)."""
        return to_numpy(nn.Softmax()(self._outputs(X)))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sample."""
        largest = to_numpy(self._outputs(X)).argmax(axis=1)
        return np.asarray(self.classes_[largest])


class NeuralNetRegressor(RegressorMixin, NeuralNet):  # type: ignore[misc]
    """A dense network for numbers: linear outputs, trained on their mean squared error.

    See `NeuralNet` for the parameters. Targets far from a standard deviation of 1 are learned
    better when scaled, as by ``sklearn.compose.TransformedTargetRegressor``.

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

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Train for one epoch on these data, going on from where the last call ended.

        Parameters
        ----------
        X, y
            As in `fit`.
        """
        return self._partial_fit(X, y)

    def predict(self, X: Any) -> NDArray[Any]:
        """(n_samples,), or (n_samples, n_outputs) where `fit` was given such targets."""
        y = to_numpy(self._outputs(X))
        return y.ravel() if self._flat else y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _activation(value: Any) -> Any:
    """What `models.MLP` takes for an activation, names replaced by classes."""
    if isinstance(value, list | tuple):
        return [_activation(one) for one in value]
    return _named("activation", value, nn, nn.Elementwise)


def _named(what: str, value: Any, room: ModuleType, base: type) -> Callable[..., Any]:
    """The subclass of `base` that `room` offers under a name in lower case; a callable is itself.

    What is added to the room is found here without a change.
    """
    if callable(value):
        return value  # type: ignore[no-any-return]
    offers = {name.lower(): getattr(room, name) for name in room.__all__}
    named = {
        name: offer
        for name, offer in offers.items()
        if isinstance(offer, type) and issubclass(offer, base) and offer is not base
    }
    return named[choice(what, value, tuple(named))]
