"""xbp's classifier compared with scikit-learn's: one hidden layer of 100 units, cross-validated.

    python examples/scikit_learn.py [--backend cupy] [--seeds 3] [--max-iter 200]

Both are the last step of the same pipeline, after a StandardScaler that is fitted on the training
part of each of the five folds. The folds are equal for both; a seed changes initial weights and
shuffles. All other parameters are the defaults: ReLU, Adam with rate 0.001, batches of 200, at most
200 epochs.
"""

import argparse
import warnings

from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xbp.estimators import NeuralNetClassifier

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--max-iter", type=int, default=200, help="epochs, at most")
options = parser.parse_args()
warnings.simplefilter("ignore", ConvergenceWarning)  # scikit-learn's MLP may need more epochs

folds = StratifiedKFold(5, shuffle=True, random_state=0)
table = Table("five folds, mean accuracy", "seed", "scikit-learn", "xbp")
for name, load in {"breast cancer": load_breast_cancer, "digits": load_digits}.items():
    x, y = load(return_X_y=True)
    columns = []
    for kind, more in ((MLPClassifier, {}), (NeuralNetClassifier, {"backend": options.backend})):
        scores = []
        for seed in range(options.seeds):
            model = kind(max_iter=options.max_iter, random_state=seed, **more)
            pipeline = make_pipeline(StandardScaler(), model)
            scores.append(cross_val_score(pipeline, x, y, cv=folds, error_score="raise").mean())
        columns.append([*scores, sum(scores) / len(scores)])
    for seed, (theirs, ours) in enumerate(zip(*columns, strict=True)):
        seeds = "all" if seed == options.seeds else str(seed)
        table.add_row(name, seeds, f"{theirs:.4f}", f"{ours:.4f}", end_section=seeds == "all")
Console(width=100).print(table)
