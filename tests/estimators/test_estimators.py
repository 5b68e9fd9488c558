"""The estimators: scikit-learn's own checks, and behaviour beyond them."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    train_test_split,
)
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.estimators import NeuralNetClassifier, NeuralNetRegressor
from xbp.random import generator
from xbp.testing import emulated_graphs
from xbp.training.capture import recordings_of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROOT = Path(__file__).parents[2]
X, Y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
NAMES = load_iris().target_names[Y]
QUICK: dict[str, Any] = {"learning_rate": 0.02, "max_iter": 20}
OPTIMIZERS = [
    name.lower()
    for name in optim.__all__
    if hasattr(getattr(optim, name), "zero_grad") and name != "Optimizer"
]


# 20 epochs with a larger step are enough for the checks, and keep all of them to a few seconds.
@parametrize_with_checks([NeuralNetClassifier(**QUICK), NeuralNetRegressor(**QUICK)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_checks_that_need_array_api_dispatch() -> None:
    """scikit-learn skips these two unless this variable was set when scipy was imported."""
    pytest.importorskip("array_api_strict")
    code = (
        "from sklearn.utils.estimator_checks import estimator_checks_generator as checks\n"
        "from xbp.estimators import NeuralNetClassifier as C, NeuralNetRegressor as R\n"
        f"for estimator in (C(**{QUICK}), R(**{QUICK})):\n"
        "    for estimator, check in checks(estimator):\n"
        "        if 'array_api' in str(check):\n"
        "            check(estimator)\n"
    )
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_cross_validated_accuracy_on_breast_cancer() -> None:
    """scikit-learn's MLPClassifier reaches 0.975 (examples/scikit_learn.py prints both)."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), NeuralNetClassifier(random_state=0))
    scores = cross_val_score(pipeline, *load_breast_cancer(return_X_y=True), cv=folds)
    assert scores.mean() >= 0.975


# --- the network and its training ----------------------------------------------------------------


def test_fit_is_a_trainer_on_an_mlp() -> None:
    """Equal bit for bit."""
    seed = int(np.random.RandomState(7).randint(2**31 - 1))
    rng = generator(seed)
    model = xbp.models.MLP(4, 6, 5, 3, activation=nn.Tanh, dropout=0.1, dtype="float64", rng=rng)
    optimizer = optim.Adam(model.parameters(), lr=1.0, weight_decay=0.02)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=rng)
    history = trainer.fit(X, Y, epochs=5, batch_size=32, verbose=False)

    ours = NeuralNetClassifier(
        (6, 5), "tanh", dropout=0.1, learning_rate=1.0, alpha=0.02, batch_size=32, max_iter=5,
        random_state=7,
    ).fit(X, Y)  # fmt: skip
    assert ours.loss_curve_ == history["loss"]
    assert history["loss"][-1] > min(history["loss"])  # and the last epoch is kept
    assert np.array_equal(ours.predict_proba(X), nn.Softmax()(trainer.predict(X)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_known_by_its_name(optimizer: str) -> None:
    classifier = NeuralNetClassifier(8, optimizer=optimizer, max_iter=2).fit(X, Y)
    assert type(classifier.trainer_.optimizer).__name__.lower() == optimizer


def test_an_optimizer_or_an_activation_of_ones_own() -> None:
    momentum = partial(optim.SGD, momentum=0.9)
    leaky = partial(nn.LeakyReLU, 0.2)
    classifier = NeuralNetClassifier(
        [8, 4], [leaky, "sigmoid"], optimizer=momentum, learning_rate=0.1, random_state=0
    )
    assert classifier.fit(X, Y).score(X, Y) > 0.9
    assert classifier.trainer_.optimizer.momentum == 0.9
    assert [repr(layer) for layer in classifier.model_][1:4:2] == [
        "LeakyReLU(negative_slope=0.2)",
        "Sigmoid()",
    ]


def test_two_classes_are_a_softmax_of_two_logits() -> None:
    two = NeuralNetClassifier(8, random_state=0, max_iter=20).fit(X[:100], Y[:100])
    z = two.trainer_.predict(X[:100])
    assert z.shape == (100, 2)
    # The same number by another route: equal but for rounding.
    sigmoid = 1 / (1 + np.exp(z[:, 0] - z[:, 1]))
    assert two.predict_proba(X[:100])[:, 1] == pytest.approx(sigmoid, rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "x_dtype", "expected"),
    [
        (None, "float32", "float32"),
        (None, "float64", "float64"),
        (None, "int64", "float64"),
        ("float32", "float64", "float32"),
        (np.float64, "float32", "float64"),
    ],
)
def test_the_dtype_is_that_of_x_or_the_one_asked_for(
    dtype: Any, x_dtype: str, expected: str
) -> None:
    model = NeuralNetRegressor(3, dtype=dtype, max_iter=2).fit(X.astype(x_dtype), Y)
    assert model.predict(X).dtype == expected


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_another_backend_gives_the_same(backend: str) -> None:
    pytest.importorskip(backend)
    on_numpy, there = (
        NeuralNetClassifier(6, backend=name, random_state=0, max_iter=5, dropout=0.2).fit(X, NAMES)
        for name in (None, backend)
    )
    backend_there = there.model_.backend()
    assert backend_there is not None and backend_there.name == backend
    assert isinstance(there.predict_proba(X), np.ndarray)
    # float64; sums in another order, over 5 epochs of one step
    assert there.predict_proba(X) == pytest.approx(on_numpy.predict_proba(X), rel=1e-9)
    assert (there.predict(X) == on_numpy.predict(X)).all()
    assert xbp.get_backend().name == "numpy"


# --- when it ends --------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch() -> None:
    model = NeuralNetClassifier(
        50, early_stopping=True, validation_fraction=0.2, learning_rate=0.05, batch_size=16,
        n_iter_no_change=4, tol=0, max_iter=200, random_state=0,
    ).fit(X, NAMES)  # fmt: skip
    losses = model.trainer_.history["val_loss"]
    best = int(np.argmin(losses)) + 1
    assert "val_loss has not improved" in model.trainer_.history.stopped
    assert model.n_iter_ == len(losses) == best + 4 < 200
    assert model.score(X, NAMES) > 0.9
    # The same seed holds out the same share, so this one ends where the other was best.
    shorter = clone(model).set_params(max_iter=best).fit(X, NAMES)
    assert np.array_equal(shorter.predict_proba(X), model.predict_proba(X))


def test_without_it_training_ends_when_the_loss_settles() -> None:
    model = NeuralNetRegressor(4, tol=10.0, n_iter_no_change=3, random_state=0).fit(X, Y)
    assert model.n_iter_ == 4  # the first, and three that were not better by 10


def test_partial_fit_goes_on_where_it_ended() -> None:
    options: dict[str, Any] = {"random_state": 0, "dropout": 0.2}
    whole = NeuralNetClassifier(8, **options, max_iter=3).fit(X, NAMES)
    parts = NeuralNetClassifier(8, **options)
    for _ in range(3):
        parts.partial_fit(X, NAMES, classes=np.unique(NAMES))
    assert parts.loss_curve_ == whole.loss_curve_ and parts.n_iter_ == 3
    parts.partial_fit(X[:50], NAMES[:50])  # a single class now
    assert parts.predict_proba(X).shape == (150, 3)
    assert NeuralNetRegressor(8).partial_fit(X, Y).partial_fit(X, Y).n_iter_ == 2


# --- weights of samples and classes --------------------------------------------------------------

FULL: dict[str, Any] = {"batch_size": 1000, "random_state": 0, "max_iter": 6, "learning_rate": 0.02}
COUNTS = np.random.default_rng(0).integers(0, 4, len(X))


@pytest.mark.parametrize("backend", ["numpy", "array_api_strict", "torch"])
@pytest.mark.parametrize("kind", [NeuralNetClassifier, NeuralNetRegressor])
def test_integer_weights_are_repetitions(kind: Any, backend: str) -> None:
    pytest.importorskip(backend)
    y = Y if kind is NeuralNetClassifier else X @ np.ones((4, 2))
    weighted = kind(8, backend=backend, **FULL).fit(X, y, sample_weight=COUNTS)
    repeated = kind(8, backend=backend, **FULL).fit(
        np.repeat(X, COUNTS, 0), np.repeat(y, COUNTS, 0)
    )
    # float64: the same sums in another order, over six steps
    assert weighted.loss_curve_ == pytest.approx(repeated.loss_curve_, rel=1e-9)
    for ours, theirs in zip(weighted.model_.state_dict().values(),
                            repeated.model_.state_dict().values(), strict=True):  # fmt: skip
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-9)
    assert weighted.loss_curve_ != kind(8, backend=backend, **FULL).fit(X, y).loss_curve_


@pytest.mark.parametrize("kind", [NeuralNetClassifier, NeuralNetRegressor])
def test_weighted_steps_can_be_recorded(kind: Any) -> None:
    pytest.importorskip("array_api_strict")
    options: dict[str, Any] = {"backend": "array_api_strict", "batch_size": 64, "max_iter": 3}
    ordinary = kind(5, random_state=0, **options).fit(X, Y, COUNTS)
    with emulated_graphs():
        recorded = kind(5, random_state=0, **options).fit(X, Y, COUNTS)
    assert recordings_of(recorded.trainer_._stepper) is not None
    assert recorded.loss_curve_ == ordinary.loss_curve_


@pytest.mark.parametrize("ours", [NeuralNetClassifier, NeuralNetRegressor])
def test_weighted_steps_are_scikit_learns(ours: Any) -> None:
    """One step of plain gradient descent from the same parameters."""
    theirs: Any = MLPClassifier if ours is NeuralNetClassifier else MLPRegressor
    if "sample_weight" not in inspect.signature(theirs.partial_fit).parameters:
        pytest.skip("scikit-learn's networks take weights since 1.7")
    y = Y if ours is NeuralNetClassifier else X[:, 0] * X[:, 1]
    weight = np.random.default_rng(1).uniform(0, 3, len(X))
    known = [np.unique(y)] if theirs is MLPClassifier else []
    options: dict[str, Any] = {"hidden_layer_sizes": 5, "activation": "tanh", "alpha": 0.0,
                               "batch_size": len(X), "random_state": 0}  # fmt: skip
    plain = {"solver": "sgd", "momentum": 0.0, **options}
    start, peer = (
        theirs(learning_rate_init=rate, **plain).partial_fit(X, y, weight, *known)
        for rate in (1e-300, 0.1)
    )
    # scikit-learn's squared error has a factor ½, so that its rate is to be halved here.
    rate = 0.1 if ours is NeuralNetClassifier else 0.05
    net = ours(optimizer="sgd", learning_rate=rate, **options).partial_fit(X, y, *known)
    net.model_.load_state_dict(parameters(start))
    net.partial_fit(X, y, sample_weight=weight)
    for name, value in parameters(peer).items():
        # float64, 150 samples: some hundred roundings
        assert net.model_.state_dict()[name] == pytest.approx(value, rel=1e-11, abs=1e-13)
    assert not np.allclose(parameters(peer)["0.weight"], parameters(start)["0.weight"])
    factor = 1 if ours is NeuralNetClassifier else 0.5
    assert factor * net.loss_ == pytest.approx(peer.loss_, rel=1e-11)


def parameters(peer: Any) -> dict[str, Any]:
    """The parameters of a network of scikit-learn, with xbp's names."""
    layers = zip((0, 2), peer.coefs_, peer.intercepts_, strict=True)
    return {
        f"{i}.{name}": value for i, w, b in layers for name, value in (("weight", w.T), ("bias", b))
    }


def test_classes_are_weighted_by_a_mapping_or_balanced() -> None:
    few, labels = np.r_[0:50, 50:60], NAMES[np.r_[0:50, 50:60]]
    factors = {"setosa": 0.5, "versicolor": 3.0}
    by_class = NeuralNetClassifier(8, class_weight=factors, **FULL).fit(X[few], labels)
    by_sample = NeuralNetClassifier(8, **FULL).fit(
        X[few], labels, sample_weight=[factors[label] for label in labels]
    )
    assert by_class.loss_curve_ == by_sample.loss_curve_
    balanced = NeuralNetClassifier(8, class_weight="balanced", **FULL).fit(X[few], labels)
    same = {"setosa": 60 / (2 * 50), "versicolor": 60 / (2 * 10)}
    expected = NeuralNetClassifier(8, class_weight=same, **FULL).fit(X[few], labels)
    assert balanced.loss_curve_ == expected.loss_curve_
    more = np.linspace(1, 2, 60)
    both = NeuralNetClassifier(8, class_weight=same, **FULL).fit(X[few], labels, more)
    product = [same[label] * factor for label, factor in zip(labels, more, strict=True)]
    assert (
        both.loss_curve_ == NeuralNetClassifier(8, **FULL).fit(X[few], labels, product).loss_curve_
    )


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(149), "sample_weight.shape == "),
        (np.ones((150, 1)), "1D"),
        (-np.ones(150), "[Nn]egative"),
        (np.full(150, np.nan), "NaN"),
        (np.zeros(150), "all weights are 0|at least one non-zero"),
    ],
)
def test_bad_weights_are_refused(weight: Any, message: str) -> None:
    for model, y in ((NeuralNetClassifier(3), Y), (NeuralNetRegressor(3), X[:, 0])):
        with pytest.raises(ValueError, match=message):
            model.fit(X, y, sample_weight=weight)
        assert not hasattr(model, "n_iter_")


@pytest.mark.parametrize("scale", [1e-300, 1e-45, 2.0**-20, 1e38, 1e300])
@pytest.mark.parametrize("kind", [NeuralNetClassifier, NeuralNetRegressor])
def test_weights_count_in_proportion(kind: Any, scale: float) -> None:
    """Weights of any size whose sum is within the dtype."""
    x, y = X.astype("float32"), Y if kind is NeuralNetClassifier else X[:, 0]
    ratios = 1 + np.arange(150) % 3
    options: dict[str, Any] = {"max_iter": 3, "random_state": 0}
    expected = kind(8, **options).fit(x, y, 2.0 ** np.round(np.log2(scale)) * ratios)
    assert expected.loss_curve_ == kind(8, **options).fit(x, y, ratios).loss_curve_
    if kind is NeuralNetClassifier:
        large = dict.fromkeys(range(3), scale)
        both = kind(8, class_weight=large, **options).fit(x, y, ratios).loss_curve_
        assert both == pytest.approx(expected.loss_curve_, rel=1e-5)  # rounded to float32


@pytest.mark.parametrize("kind", [NeuralNetClassifier, NeuralNetRegressor])
def test_what_is_held_out_has_some_weight(kind: Any) -> None:
    weight = np.zeros(150)
    weight[0] = 1  # on one side of the split only
    model = kind(8, early_stopping=True, random_state=0)
    y = Y if kind is NeuralNetClassifier else X[:, 0]
    with pytest.raises(InputError, match=r"all weights of what is (held out|trained on) are 0"):
        model.fit(X, y, sample_weight=weight)
    assert model.trainer_.optimizer.steps == 0


@pytest.mark.parametrize("how", ["fit", "partial_fit"])
def test_what_may_change_before_it_goes_on(how: str) -> None:
    def go_on() -> Any:
        return model.fit(X, Y) if how == "fit" else model.partial_fit(X, Y, classes=[0, 1, 2])

    model = NeuralNetClassifier((8,), max_iter=2, warm_start=True, random_state=0)
    go_on()
    go_on()
    model.set_params(learning_rate=0.5, alpha=0.25, hidden_layer_sizes=[8])
    go_on()
    optimizer = model.trainer_.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (0.5, 0.25)
    for name, value in {
        "hidden_layer_sizes": (8, 8),
        "activation": "tanh",
        "dropout": 0.5,
        "optimizer": "sgd",
        "backend": "numpy",
        "dtype": "float32",
        "group": "alone",
    }.items():
        old, steps = getattr(model, name), optimizer.steps
        model.set_params(**{name: value})
        with pytest.raises(InputError, match=f"^{name} was .* and is .* set it back"):
            go_on()
        assert optimizer.steps == steps
        model.set_params(**{name: old})
    go_on()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("even", "class_weight must be one of 'balanced', got 'even'"),
        ({0: 1, "other": 2}, "class_weight has a class 'other'; the classes are"),
        ({(0, 1): 2}, r"class_weight has a class \(0, 1\)"),
        ({0: -1}, r"class_weight\[0\] must be a finite number from 0, got -1"),
        ({0: "much"}, r"class_weight\[0\] must be a finite number"),
    ],
)
def test_bad_class_weights_are_refused(weight: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeuralNetClassifier(3, class_weight=weight).fit(X, Y)


def test_balanced_classes_need_all_data_at_once() -> None:
    with pytest.raises(InputError, match="needs all data at once"):
        NeuralNetClassifier(3, class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])


# --- what scikit-learn's users look for ----------------------------------------------------------


@pytest.mark.parametrize("weight", [None, np.linspace(0.5, 2, len(X))])
def test_scores_of_what_is_held_out(weight: Any) -> None:
    options: dict[str, Any] = {"early_stopping": True, "random_state": 3, "max_iter": 4}
    for kind, y, score in (
        (NeuralNetClassifier, Y, accuracy_score), (NeuralNetRegressor, X[:, 0], r2_score)
    ):  # fmt: skip
        model = kind(8, learning_rate=0.01, **options).fit(X, y, weight)
        assert len(model.validation_scores_) == model.n_iter_ == 4
        assert model.best_validation_score_ == max(model.validation_scores_)
        assert model.best_loss_ is None and model.loss_ == model.loss_curve_[-1]
        state = np.random.RandomState(3)
        state.randint(2**31 - 1)  # the seed of the network
        parts = [X, y] if weight is None else [X, y, weight]
        split = train_test_split(
            *parts, test_size=0.1, random_state=state,
            stratify=y if kind is NeuralNetClassifier else None,
        )  # fmt: skip
        x_held, y_held, *held = split[1::2]
        kept = int(np.argmin(model.trainer_.history["val_loss"]))
        expected = score(y_held, model.predict(x_held), sample_weight=held[0] if held else None)
        assert model.validation_scores_[kept] == pytest.approx(expected, rel=1e-12)


def test_there_are_none_without_early_stopping() -> None:
    model = NeuralNetClassifier(8, **QUICK).fit(X, Y)
    assert model.validation_scores_ is None and model.best_validation_score_ is None
    assert model.best_loss_ == min(model.loss_curve_) and model.n_outputs_ == 3


def test_a_loss_that_has_not_settled_is_a_warning() -> None:
    with pytest.warns(ConvergenceWarning, match="not settled after max_iter=2 epochs"):
        NeuralNetClassifier(3, max_iter=2).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralNetClassifier(3, tol=10.0, n_iter_no_change=2).fit(X, Y)
        NeuralNetClassifier(3).partial_fit(X, Y, classes=[0, 1, 2])


@pytest.mark.parametrize(
    ("kind", "y"), [(NeuralNetClassifier, NAMES), (NeuralNetRegressor, X[:, 0])]
)
def test_a_column_of_targets_is_taken_for_a_row_with_a_warning(kind: Any, y: Any) -> None:
    flat = kind(4, **QUICK, random_state=0).fit(X, y)
    with pytest.warns(DataConversionWarning, match="column-vector"):
        column = kind(4, **QUICK, random_state=0).fit(X, y[:, None])
    assert column.predict(X).shape == (150,) and column.loss_curve_ == flat.loss_curve_
    assert column.score(X, y) == flat.score(X, y)


def test_a_regressor_refuses_another_number_of_outputs() -> None:
    model = NeuralNetRegressor(4).partial_fit(X, X[:, :2])
    for y in (X[:, 0], X[:, :3]):
        with pytest.raises(InputError, match="targets of shape"):
            model.partial_fit(X, y)


def test_logarithms_of_probabilities() -> None:
    model = NeuralNetClassifier(8, learning_rate=0.5, max_iter=100, random_state=0).fit(X, Y)
    logarithms = model.predict_log_proba(100 * X)
    assert np.isfinite(logarithms).all() and logarithms.min() < -800  # e^-800 is 0 in float64
    assert np.exp(logarithms) == pytest.approx(model.predict_proba(100 * X), abs=1e-12)


def test_scikit_learns_names_of_activations() -> None:
    same = [NeuralNetClassifier(4, name, **QUICK, random_state=0).fit(X, Y).predict_proba(X)
            for name in ("logistic", "sigmoid")]  # fmt: skip
    assert np.array_equal(*same)
    linear = NeuralNetRegressor((5, 4), "identity", max_iter=3, random_state=0).fit(X, Y)
    state = linear.model_.state_dict()
    expected = X
    for layer in (0, 2, 4):
        expected = expected @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
    assert linear.predict(X) == pytest.approx(expected[:, 0], rel=1e-12)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_warm_start_goes_on(early_stopping: bool) -> None:
    options: dict[str, Any] = {"random_state": 0, "dropout": 0.2, "early_stopping": early_stopping}
    warm = NeuralNetClassifier(8, max_iter=2, warm_start=True, **options).fit(X, NAMES)
    model, before = warm.model_, warm.loss_curve_[:]
    warm.fit(X, NAMES)
    assert warm.model_ is model and warm.loss_curve_[:2] == before and warm.n_iter_ == 4
    if not early_stopping:  # which starts the second time from the best epoch of the first
        whole = NeuralNetClassifier(8, max_iter=4, **options).fit(X, NAMES)
        assert warm.loss_curve_ == whole.loss_curve_
    with pytest.raises(InputError, match="there is no class 'x'; the classes are"):
        warm.fit(X, ["x"] * 150)
    with pytest.raises(ValueError, match="expecting 4 features"):
        warm.fit(X[:, :3], NAMES)
    assert warm.set_params(warm_start=False).fit(X, NAMES).n_iter_ == 2


# --- scikit-learn's world ------------------------------------------------------------------------


def test_pipeline_and_grid_search_with_string_labels() -> None:
    pipeline = make_pipeline(StandardScaler(), NeuralNetClassifier(random_state=0, max_iter=30))
    grid = {
        "neuralnetclassifier__hidden_layer_sizes": [(8,), (8, 4)],
        "neuralnetclassifier__learning_rate": [1e-6, 0.05],
    }
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, NAMES)
    assert search.best_params_["neuralnetclassifier__learning_rate"] == 0.05
    assert search.best_score_ > 0.9
    assert set(search.predict(X)) == {"setosa", "versicolor", "virginica"}


def test_pandas_columns_are_remembered() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    model = NeuralNetClassifier(8, **QUICK).fit(frame, pandas.Series(NAMES))
    assert model.feature_names_in_.tolist() == list("abcd")
    assert set(model.predict(frame)) <= set(NAMES)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "z"}))


def test_a_regressor_of_several_outputs() -> None:
    targets = X @ np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0], [0.0, 0.0]])
    model = NeuralNetRegressor(50, learning_rate=0.01, random_state=0).fit(X, targets)
    assert model.predict(X).shape == (150, 2)
    assert model.score(X, targets) > 0.98


def test_several_labels_are_a_network_for_each() -> None:
    several = np.stack([Y == 0, Y > 1], axis=1)
    model = NeuralNetClassifier(8, random_state=0, **QUICK)
    with pytest.raises(InputError, match=r"one label for each sample; for several, .*MultiOutput"):
        model.fit(X, several)
    found = MultiOutputClassifier(model).fit(X, several).predict(X)
    np.testing.assert_array_equal(found[:, 1], model.fit(X, several[:, 1]).predict(X))


def test_a_pickle_predicts_the_same_and_trains_on() -> None:
    model = NeuralNetClassifier(8, random_state=0, **QUICK).fit(X, NAMES)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    model.partial_fit(X, NAMES)
    again.partial_fit(X, NAMES)
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))


# --- what is refused -----------------------------------------------------------------------------


def spoiled(value: float) -> Any:
    x = X.copy()
    x[3, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (spoiled(np.nan), Y, "Input X contains NaN"),
        (spoiled(np.inf), Y, "Input X contains infinity"),
        (X[:0], Y[:0], r"Found array with 0 sample\(s\)"),
        (X, Y[:-1], "inconsistent numbers of samples"),
        (X, X[:, 0], "Unknown label type: continuous"),
    ],
)
def test_bad_data_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralNetClassifier(3).fit(x, y)


def test_another_number_of_features_is_refused() -> None:
    model = NeuralNetClassifier(3, max_iter=1).fit(X, Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but .* is expecting 4 features"):
        model.predict(X[:, :3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layer_sizes": (5, 0)}, "size 2 of an MLP must be an integer of at least 1"),
        ({"hidden_layer_sizes": "many"}, "size 1 of an MLP must be an integer"),
        ({"activation": "step"}, "activation must be one of .*'relu'.*, got 'step'"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of .*'adam'.*, got 'lbfgs'"),
        ({"learning_rate": -1}, "lr must be a finite number from 0"),
        ({"alpha": -1}, "alpha must be a finite number from 0"),
        ({"dropout": 2}, "p must be a finite number from 0 to 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"batch_size": "all"}, "batch_size must be an integer"),
        ({"max_iter": 0}, "max_iter must be an integer of at least 1"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be an integer of at least 1"),
        ({"tol": -1}, "tol must be a finite number from 0"),
        ({"validation_fraction": 2}, "validation_fraction must be a finite number from 0 to 1"),
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'float64', got 'int8'"),
        ({"random_state": "x"}, "cannot be used to seed"),
    ],
)
def test_bad_parameters_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralNetClassifier(**options).fit(X, Y)


def test_partial_fit_wants_all_classes_from_the_start() -> None:
    model = NeuralNetClassifier(3)
    with pytest.raises(InputError, match="the first partial_fit needs classes"):
        model.partial_fit(X, Y)
    with pytest.raises(InputError, match=r"there is no class 2; the classes are \[0, 1\]"):
        model.partial_fit(X, Y, classes=[1, 0])
    model.partial_fit(X, Y, classes=[2, 0, 1])
    with pytest.raises(InputError, match=r"classes must stay \[0, 1, 2\], got \[0, 1\]"):
        model.partial_fit(X, Y, classes=[0, 1])


def test_nothing_is_predicted_before_fit() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        NeuralNetRegressor().predict(X)


def test_nor_after_a_fit_that_failed() -> None:
    model = NeuralNetRegressor(3, max_iter=2).fit(X, Y)
    model.set_params(early_stopping=True, validation_fraction=0)
    with pytest.raises(ValueError, match="test_size"):
        model.fit(X, Y)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_without_scikit_learn_one_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['sklearn.base'] = None; import xbp; import xbp.estimators"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: xbp.estimators needs scikit-learn 1.6 or later (")
    assert last.endswith("pip install scikit-learn")
