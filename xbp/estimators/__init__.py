"""Dense networks as scikit-learn's estimators: in pipelines, grid searches, cross-validation.

scikit-learn is imported here and nowhere else in xbp, and comes with the ``sklearn`` extra. So
``import xbp`` does not give this module: write ``from xbp.estimators import NeuralNetClassifier``.
"""

try:
    from xbp.estimators.classifier import NeuralNetClassifier
    from xbp.estimators.network import NeuralNet
    from xbp.estimators.regressor import NeuralNetRegressor
except ImportError as error:
    if not (error.name or "").startswith("sklearn"):
        raise
    msg = f"xbp.estimators needs scikit-learn 1.6 or later ({error}): pip install scikit-learn"
    raise ImportError(msg) from None

__all__ = ["NeuralNet", "NeuralNetClassifier", "NeuralNetRegressor"]
