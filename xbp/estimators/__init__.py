"""Dense networks as scikit-learn estimators, for pipelines, grid searches and cross-validation.

This is the only part of xbp that imports scikit-learn, which comes with the ``sklearn`` extra. So
``import xbp`` does not import it: write ``from xbp.estimators import NeuralNetClassifier``.
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
