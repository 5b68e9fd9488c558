"""Estimators that several ranks train."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from parallel.shares import Thread, by_threads

from xbp import parallel
from xbp.parallel.groups import Joined

pytest.importorskip("sklearn")
from xbp.estimators import NeuralNetClassifier, NeuralNetRegressor

pytestmark = pytest.mark.filterwarnings("ignore:the loss has not settled")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(37, 4))
NAMES = np.array(["no", "yes", "perhaps"])[RNG.integers(0, 3, 37)]
NUMBERS = X @ RNG.normal(size=(4, 2))
WEIGHTS = RNG.integers(0, 3, 37)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
"""float64; some 40 steps magnify what sums in another order round otherwise."""


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["even", "weighted"])
@pytest.mark.parametrize("kind", [NeuralNetClassifier, NeuralNetRegressor])
def test_ranks_make_what_one_process_makes(kind: Any, weight: Any, early_stopping: bool) -> None:
    y = NAMES if kind is NeuralNetClassifier else NUMBERS

    def fit(group: Thread | None) -> Any:
        options: dict[str, Any] = {"dropout": 0.2, "batch_size": 8, "max_iter": 8, "tol": 0.0}
        options |= {"random_state": 0, "early_stopping": early_stopping, "n_iter_no_change": 3}
        net = kind(6, group=group, **options).fit(X, y, sample_weight=weight)
        net.partial_fit(X[:9], y[:9])
        scores = net.validation_scores_ or []
        return np.array([*net.loss_curve_, *scores, net.score(X, y), *np.ravel(net.model_(X[:3]))])

    expected = fit(None)
    found = by_threads(3, fit)
    for each in found:
        np.testing.assert_allclose(each, expected, **CLOSE)
        assert each.tobytes() == found[0].tobytes()


def test_without_a_seed_ranks_share_that_of_rank_0() -> None:
    def fit(group: Thread) -> Any:
        net = NeuralNetClassifier(6, group=group, max_iter=3, early_stopping=True).fit(X, NAMES)
        return net.loss_curve_, net.validation_scores_, net.predict_proba(X).tobytes()

    first, *others = by_threads(2, fit)
    assert others == [first]


class Two(parallel.Alone, Joined):
    """The first of two ranks, of which the other one has nothing to say."""

    size, local_size = 2, 2

    def sum_(self, array: Any) -> None:
        if isinstance(array, np.ndarray) and array.ndim == 2:
            array[1] = array[0]


def test_a_copy_keeps_the_group_and_a_pickle_leaves_it() -> None:
    net = NeuralNetRegressor(3, group=Two(), max_iter=1, random_state=0).fit(X, NUMBERS)
    trainer = copy.deepcopy(net).trainer_
    assert trainer.group is net.trainer_.group and trainer.share.size == 2
    elsewhere = pickle.loads(pickle.dumps(net))
    assert elsewhere.trainer_.share.size == 1 and elsewhere.group.size == 1
    np.testing.assert_array_equal(elsewhere.model_(X), net.model_(X))
    assert elsewhere.predict(X).shape == NUMBERS.shape
