"""The base of both estimators: a network, its training, and the fitted attributes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from xbp import nn, optim, parallel
from xbp.arguments import choice, integer, number
from xbp.backend import Array, Backend, dtype_name
from xbp.errors import InputError
from xbp.estimators.weighting import WeightedLoss, packed
from xbp.models import MLP
from xbp.models.mlp import Activation
from xbp.parallel import Group
from xbp.random import generator
from xbp.training import Callback, EarlyStopping, Trainer, Training
from xbp.training.history import Record
from xbp.training.share import share_of


class NeuralNet(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Base of both estimators: a `models.MLP`, trained by a `Trainer`.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        The units of each hidden layer; ``()`` makes the model linear.
    activation : str, callable, or sequence with one for each hidden layer; default "relu"
        The name of any elementwise layer of `xbp.nn` in lower case (``"sigmoid"``, ``"gelu"``, …),
        an activation as for `models.MLP`, or scikit-learn's "logistic" and "identity".
    dropout : float, or sequence with one for each hidden layer; default 0
    optimizer : str or callable, default "adam"
        The name of any optimizer of `xbp.optim` in lower case, or a function that makes one, such
        as ``functools.partial(optim.SGD, momentum=0.9)``.
    learning_rate : float or schedule, default 0.001
        The optimizer's ``lr``. 0.001 suits Adam's family; Adadelta needs about 1.
    alpha : float, default 0.0001
        The optimizer's ``weight_decay`` of all parameters: an L2 penalty ½ alpha ‖p‖², except for
        AdamW, where the decay is decoupled. (scikit-learn's MLP divides its alpha by the batch
        size, and does not decay biases.)
    batch_size : int or "auto", default "auto"
        "auto" is the smaller of 200 and the number of samples.
    max_iter : int, default 200
        The number of epochs, unless training ends earlier.
    tol : float, default 0.0001
    n_iter_no_change : int, default 10
        Training ends when the loss has not improved by more than `tol` for this many epochs; if
        that does not happen within `max_iter` epochs, `fit` gives a ConvergenceWarning.
    early_stopping : bool, default False
        Whether to use the loss on held-out data, and to keep the parameters of the best epoch.
    validation_fraction : float, default 0.1
        The share of held-out data; stratified for a classifier.
    random_state : int, RandomState or None
        Seed of initial weights, shuffles, masks and the held-out data.
    backend : str, Backend or None
        Where to train; None is the current backend in `fit`.
    dtype : "float32", "float64" or None
        None is float32 if X is float32, and float64 otherwise.
    verbose : bool, default False
        Whether to show a progress bar.
    warm_start : bool, default False
        Whether another `fit` continues with the parameters and the optimizer of the last one, like
        `partial_fit`. Features, classes and the options of the network must be the same;
        `learning_rate` and `alpha` may change.
    group : {"mpi", "nccl", "alone"}, Group or None
        The processes that train together; see `Trainer`. All of them call the same methods with the
        same data.

    Attributes
    ----------
    model_ : models.MLP
    trainer_ : Trainer
    loss_curve_ : list of float
        The mean loss of each epoch.
    loss_, best_loss_ : float
        The last and the lowest of them; `best_loss_` is None with `early_stopping`.
    validation_scores_ : list of float, or None
        With `early_stopping`, the score (accuracy, R²) on held-out data after each epoch of this
        `fit`. The loss on these data, not the score, ends training and chooses the best epoch.
    best_validation_score_ : float or None
        The highest of them.
    n_iter_ : int
        The number of epochs made.
    n_outputs_ : int
        The number of outputs of the network.
    n_features_in_ : int
    feature_names_in_ : array of str
        If X had named columns.
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
        warm_start: bool = False,
        group: str | Group | None = None,
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
        self.warm_start = warm_start
        self.group = group

    # --- what the two differ in ---

    loss: nn.CrossEntropyLoss | nn.MSELoss

    def _learn(self, y: NDArray[Any]) -> int:
        """Learn the values of the targets; returns the number of outputs."""
        raise NotImplementedError

    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        """y as targets of the loss."""
        raise NotImplementedError

    def _weights(self, y: NDArray[Any]) -> NDArray[Any] | None:
        """The weight of each sample due to its target; None if there are no such weights."""
        return None

    def _score_of(self, outputs: Array, y: NDArray[Any], weight: NDArray[Any] | None) -> float:
        """The `score` of outputs, for the result of `_targets`."""
        raise NotImplementedError

    # --- fitting ---

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from new initial weights, or with `warm_start` from the weights of the last `fit`.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        y : array-like (n_samples,), of a regressor also (n_samples, n_outputs)
            A single column is read as (n_samples,), with a DataConversionWarning.
        sample_weight : array-like (n_samples,), optional
            At least 0. The loss of a batch is Σ w_n L_n / Σ w_n, as in scikit-learn: an integer
            weight counts a sample as often as repeating it in its batch would.

        Raises
        ------
        ValueError
            A parameter is out of range, or the data do not fit (raised by scikit-learn).
        NonFiniteError
            The loss became infinite or nan.

        Warns
        -----
        ConvergenceWarning
            The loss was still improving after `max_iter` epochs.
        """
        epochs = integer("max_iter", self.max_iter, least=1)
        share = number("validation_fraction", self.validation_fraction, least=0, most=1)
        patience = integer("n_iter_no_change", self.n_iter_no_change, least=1)
        tol = number("tol", self.tol, least=0)
        warm = bool(self.warm_start) and hasattr(self, "n_iter_")
        X, y, weight = self._admit(X, y, sample_weight, reset=not warm)
        outputs = self.n_outputs_ if warm else self._learn(y)
        y = self._targets(y)
        weight = self._all_weights(y, weight)
        random_state = self._start(outputs, warm=warm)
        parts, held = [X, y] if weight is None else [X, y, weight], None
        if self.early_stopping:
            stratify = y if isinstance(self, ClassifierMixin) else None
            split = train_test_split(
                *parts, test_size=share, random_state=random_state, stratify=stratify
            )
            parts, held = split[0::2], split[1::2]
            for part, weights in (("trained on", parts[2:]), ("held out", held[2:])):
                _check_weights(f"all weights of what is {part} are 0", *weights)
        stop = EarlyStopping(
            "val_loss" if held else "loss", patience, tol, restore_best=held is not None
        )
        self._train(parts, epochs, held, stop)
        trainer = self.trainer_
        unsettled = len(trainer.history) == epochs and not trainer.stop_reason
        if unsettled and trainer.share.first:
            msg = (
                f"the loss has not settled after max_iter={epochs} epochs; raise max_iter, or tol, "
                "or the learning rate"
            )
            warnings.warn(msg, ConvergenceWarning, stacklevel=2)
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, known: Any = None) -> Self:
        """One epoch; the first call learns the targets' values from `known`, or else from y."""
        first = not hasattr(self, "n_iter_")
        X, y, weight = self._admit(X, y, sample_weight, reset=first)
        outputs = self._learn(y if known is None else known) if first else 0
        y = self._targets(y)  # errors in this line and the next leave the estimator unchanged
        weight = self._all_weights(y, weight)
        if first:
            self._start(outputs)
        else:
            self._go_on()
        self._train([X, y] if weight is None else [X, y, weight], epochs=1)
        return self

    def _admit(
        self, X: Any, y: Any, weight: Any, *, reset: bool
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """X in the model's dtype, y, and weights; `reset` chooses dtype and number of features."""
        dtype: Any = [np.float64, np.float32]
        if not reset:
            dtype = self.dtype_
        elif self.dtype is not None:
            dtype = choice("dtype", dtype_name(self.dtype), ("float32", "float64"))
        free = isinstance(self, RegressorMixin)  # y holds numbers in one column or more
        columns = getattr(y, "shape", ())[1:]
        if not free and columns and columns != (1,):
            msg = (
                f"y has the shape {tuple(y.shape)}, and {type(self).__name__} takes one label for "
                "each sample; for several, sklearn.multioutput.MultiOutputClassifier makes a "
                "network for each column, and xbp.Trainer trains one by nn.BCEWithLogitsLoss"
            )
            raise InputError(msg)
        X, y = validate_data(
            self, X, y, reset=reset, dtype=dtype, multi_output=free, y_numeric=free
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if weight is not None:
            weight = _check_sample_weight(weight, X, dtype=np.float64, ensure_non_negative=True)
        self.dtype_: str = X.dtype.name
        return X, y, weight

    def _all_weights(self, y: NDArray[Any], weight: NDArray[Any] | None) -> NDArray[Any] | None:
        """The given weights times those due to targets, scaled so that the largest is in [½, 1).

        Only ratios matter. A power of 2 keeps them exact, and sums within the range of the dtype.
        """
        own = _scaled(self._weights(y))
        weight = own if weight is None else _scaled(weight)
        if own is not None and weight is not own:
            weight = _scaled(own * weight)
        if weight is None:
            return None
        weight = weight.astype(self.dtype_)
        _check_weights("all weights are 0, so there is nothing to learn from", weight)
        return weight

    def _start(self, outputs: int, *, warm: bool = False) -> np.random.RandomState:
        """Make the network and its trainer; returns the generator of their seeds."""
        share = share_of(parallel.group(self.group)) if not warm else self.trainer_.share
        seed = self.random_state
        if seed is None and share.size > 1:
            seed = share.seed(None) % 2**32
        random_state: np.random.RandomState = check_random_state(seed)
        rng = generator(int(random_state.randint(2**31 - 1)))
        if warm:
            self._go_on()
            return random_state
        self.__dict__.pop("n_iter_", None)  # marks a fitted estimator; set again after training
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
        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": decay}
        groups = optim.muon_groups(self.model_, **options) if make is optim.Muon else None
        optimizer = make(groups or self.model_.parameters(), **options)
        self.trainer_: Trainer = Trainer(
            self.model_, self.loss, optimizer, rng=rng, group=share.group
        )
        self._remember()
        self.loss_curve_: list[float] = []
        self.n_outputs_ = outputs
        return random_state

    def _go_on(self) -> None:
        """Apply parameters that may change between two calls.

        Raises
        ------
        InputError
            A parameter that network or optimizer were made with has changed.
        """
        changed = {
            name: value
            for name, value in self._made_from.items()
            if _comparable(getattr(self, name)) not in (value,)  # identity, then equality
        }
        for name, value in changed.items():
            now = getattr(self, name)
            if name in FIXED:
                msg = (
                    f"{name} was {value!r} and is {now!r}, which an earlier fit cannot be gone on "
                    "with; set it back, or fit with warm_start=False"
                )
                raise InputError(msg)
        for group in self.trainer_.optimizer.param_groups:
            if "learning_rate" in changed:
                group["lr"] = self.learning_rate
            if "alpha" in changed:
                group["weight_decay"] = number("alpha", self.alpha, least=0)
        self._remember()

    def _remember(self) -> None:
        names = (*FIXED, "learning_rate", "alpha")
        self._made_from = {name: _comparable(getattr(self, name)) for name in names}

    def _train(
        self,
        parts: Sequence[NDArray[Any]],
        epochs: int,
        held: Sequence[NDArray[Any]] | None = None,
        *callbacks: Callback,
    ) -> None:
        """Train on (X, targets) or (X, targets, weights), with held-out data for validation."""
        size = min(200, len(parts[0])) if self.batch_size == "auto" else self.batch_size
        size = integer("batch_size", size, least=1)
        scores = None if held is None else _Scores(self, held)
        trainer, weighted = self.trainer_, len(parts) == 3
        trainer.loss = WeightedLoss(self.loss) if weighted else self.loss
        x, y = packed(parts) if weighted else parts
        validation: Any = held and (packed(held) if weighted else tuple(held))
        every = [*callbacks, *([scores] if scores else [])]
        verbose = bool(self.verbose)
        try:
            with warnings.catch_warnings():
                if isinstance(self, ClassifierMixin) and self.n_outputs_ == 1:
                    warnings.filterwarnings("ignore", "a softmax over a single output")
                history = trainer.fit(x, y, epochs, size, validation, every, verbose=verbose)
        finally:
            trainer.loss = self.loss
        self.loss_curve_ += history["loss"]
        self.n_iter_, self.loss_ = len(self.loss_curve_), self.loss_curve_[-1]
        self.best_loss_ = None if scores else min(self.loss_curve_)
        self.validation_scores_ = scores and scores.values
        self.best_validation_score_ = max(scores.values) if scores else None

    def _outputs(self, X: Any) -> Array:
        """The network's outputs for X, on its device."""
        check_is_fitted(self, "n_iter_")
        return self.trainer_.predict(validate_data(self, X, reset=False, dtype=self.dtype_))


class _Scores(Callback):
    """The score of each epoch on held-out data."""

    def __init__(self, net: NeuralNet, held: Sequence[NDArray[Any]]) -> None:
        self.net, self.held = net, held
        self.values: list[float] = []

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        x, y, *weight = self.held
        self.values.append(self.net._score_of(trainer.predict(x), y, weight[0] if weight else None))


FIXED = ("hidden_layer_sizes", "activation", "dropout", "optimizer", "backend", "dtype", "group")
"""The parameters that a network and its optimizer are made with."""


def _comparable(value: Any) -> Any:
    """A parameter, with sequences as tuples."""
    return tuple(value) if isinstance(value, list | tuple | np.ndarray) else value


def _scaled(weight: NDArray[Any] | None) -> NDArray[Any] | None:
    """Weights times the power of 2 that brings the largest into [½, 1)."""
    if weight is None or not weight.any():
        return weight
    scaled: NDArray[Any] = np.ldexp(weight, -np.frexp(weight.max())[1])
    return scaled


def _check_weights(msg: str, *weights: NDArray[Any]) -> None:
    """Refuse weights that are all 0."""
    if not all(weight.any() for weight in weights):
        raise InputError(f"{msg}; give some samples a weight above 0")


def _identity() -> nn.Layer:
    """The identity function as a layer."""
    return nn.LeakyReLU(negative_slope=1.0)


ALIASES = {"logistic": nn.Sigmoid, "identity": _identity}
"""scikit-learn's names of activations, and xbp's."""


def _activation(value: Any) -> Any:
    """An activation as for `models.MLP`, with names replaced by classes."""
    if isinstance(value, list | tuple):
        return [_activation(one) for one in value]
    if isinstance(value, str) and value in ALIASES:
        return ALIASES[value]
    return _named("activation", value, nn, nn.Elementwise)


def _named(what: str, value: Any, module: ModuleType, base: type) -> Callable[..., Any]:
    """The subclass of `base` in `module` with a name in lower case; a callable is returned itself.

    New classes in the module are found without a change here.
    """
    if callable(value):
        return value  # type: ignore[no-any-return]
    offers = {name.lower(): getattr(module, name) for name in module.__all__}
    named = {
        name: offer
        for name, offer in offers.items()
        if isinstance(offer, type) and issubclass(offer, base) and offer is not base
    }
    return named[choice(what, value, tuple(named))]
