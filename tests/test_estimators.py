from sklearn.utils.estimator_checks import parametrize_with_checks

from xbp.estimators import NeuralNetClassifier, NeuralNetRegressor


@parametrize_with_checks(
    [
        NeuralNetClassifier(learning_rate=0.02, max_iter=20),
        NeuralNetRegressor(learning_rate=0.02, max_iter=20),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)
