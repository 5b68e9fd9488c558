"""The estimators as they are used: labels, pipelines, searches, pandas, and wrong input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xbp
from xbp.estimators import NeuralNetClassifier, NeuralNetRegressor

X = np.random.default_rng(0).normal(size=(120, 3))
LABELS = np.where(X[:, 0] + X[:, 1] > 0, "yes", "no")


def classifier(**keywords: Any) -> NeuralNetClassifier:
    defaults = {"learning_rate": 0.02, "max_iter": 40, "random_state": 0}
    return NeuralNetClassifier(16, **(defaults | keywords))


def test_string_labels_and_probabilities() -> None:
    model = classifier().fit(X, LABELS)
    assert model.classes_.tolist() == ["no", "yes"]
    assert model.score(X, LABELS) > 0.95
    probabilities = model.predict_proba(X)
    # Softmax in float64: a row's sum is off by a rounding or two.
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-15)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(X)).all()


def test_the_same_random_state_gives_the_same_model() -> None:
    first, second, other = (
        classifier(random_state=s, dropout=0.2).fit(X, LABELS) for s in (0, 0, 1)
    )
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    assert not np.array_equal(first.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adamw", "nadam", "radam"])
def test_optimizers_are_found_by_name(optimizer: str) -> None:
    model = classifier(optimizer=optimizer, learning_rate=0.05).fit(X, LABELS)
    assert type(model.trainer_.optimizer).__name__.lower() == optimizer
    assert model.score(X, LABELS) > 0.8


def test_pipeline_and_grid_search() -> None:
    search = GridSearchCV(
        make_pipeline(StandardScaler(), classifier(max_iter=20)),
        {"neuralnetclassifier__hidden_layer_sizes": [(4,), (8, 8)]},
        cv=2,
    )
    assert search.fit(X, LABELS).best_score_ > 0.8


def test_pandas_input_keeps_its_names() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = classifier().fit(frame, pd.Series(LABELS))
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.score(frame, LABELS) > 0.95


def test_partial_fit_is_one_epoch_and_knows_classes_that_come_later() -> None:
    model = classifier()
    model.partial_fit(X[:20], np.repeat("no", 20), classes=["no", "yes"])
    for _ in range(40):
        model.partial_fit(X, LABELS)
    assert model.n_iter_ == 41
    assert model.score(X, LABELS) > 0.95


def test_early_stopping_holds_out_a_share_and_stops() -> None:
    noise = np.random.default_rng(1).integers(0, 2, 120)  # nothing to learn: it can only get worse
    model = classifier(early_stopping=True, max_iter=500, n_iter_no_change=3).fit(X, noise)
    assert model.n_iter_ < 500
    assert "val_loss has not improved" in model.trainer_.history.stopped


def test_a_regressor_learns_one_and_several_targets() -> None:
    model = NeuralNetRegressor(32, learning_rate=0.01, max_iter=200, random_state=0)
    targets = np.stack([X[:, 0] * X[:, 1], X[:, 2]], axis=1)
    assert model.fit(X, targets).score(X, targets) > 0.8
    assert model.predict(X).shape == (120, 2)
    assert model.fit(X, targets[:, 1]).predict(X).shape == (120,)


def test_another_backend_gives_the_same() -> None:
    pytest.importorskip("array_api_strict")
    here, there = (
        classifier(max_iter=3, backend=backend).fit(X, LABELS).predict_proba(X)
        for backend in ("numpy", "array_api_strict")
    )
    # The same operations; 3 steps of float64 rounding at most.
    np.testing.assert_allclose(here, there, rtol=1e-12)


BAD = [
    (lambda m: m.predict(X[:, :2]), "2 features"),
    (lambda m: m.fit(np.full((4, 3), np.nan), LABELS[:4]), "NaN"),
    (lambda m: m.fit(X[:0], LABELS[:0]), "0 sample"),
    (lambda m: m.partial_fit(X, np.repeat("maybe", 120)), "no class .*maybe"),
    (lambda m: m.set_params(optimizer="adma").fit(X, LABELS), "optimizer must be one of.*'adma'"),
    (lambda m: m.set_params(activation="rely").fit(X, LABELS), "activation must be one of.*'rely'"),
    (lambda m: m.set_params(max_iter=0).fit(X, LABELS), "max_iter must be"),
    (lambda m: m.set_params(alpha=-1).fit(X, LABELS), "alpha must be"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_wrong_input_is_refused(call: Any, sentence: str) -> None:
    model = classifier(max_iter=1).fit(X, LABELS)
    with pytest.raises(ValueError, match=sentence):
        call(model)


def test_cross_validation_is_no_worse_than_scikit_learns() -> None:
    """Breast cancer with one hidden layer of 100; examples/scikit_learn.py has digits as well.

    A fold of 114 decides in steps of 0.9 %, so the means may differ by one of them.
    """
    x, y = load_breast_cancer(return_X_y=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    own, peer = (
        cross_val_score(make_pipeline(StandardScaler(), model), x, y, cv=folds).mean()
        for model in (
            NeuralNetClassifier(100, random_state=0),
            MLPClassifier(100, random_state=0, max_iter=400),
        )
    )
    assert own > 0.965
    assert own > peer - 0.009


def test_mlp_refuses_what_does_not_fit() -> None:
    for arguments, keywords, sentence in [
        ((3,), {}, "inputs and of outputs"),
        ((3, 0, 1), {}, "size 1 of an MLP"),
        ((3, 4, 1), {"dropout": [0.1, 0.2]}, "each of 1 hidden layers"),
        ((3, 4, 1), {"activation": "relu"}, "activation must be a class"),
    ]:
        with pytest.raises(xbp.errors.InputError, match=sentence):
            xbp.models.MLP(*arguments, **keywords)


def test_mlp_depth_bias_and_outputs() -> None:
    model = xbp.models.MLP(3, 4, 5, 2, bias=False, dropout=0.5, dtype="float64", rng=0)
    assert [p.shape for p in model.parameters()] == [(4, 3), (5, 4), (2, 5)]
    assert [type(layer).__name__ for layer in model] == [
        *("Linear", "ReLU", "Dropout"),
        *("Linear", "ReLU", "Dropout", "Linear"),
    ]
    assert model(X).shape == (120, 2)
