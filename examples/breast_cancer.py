"""Classification of tumours: the tutorial's network, trained once by every optimizer of xbp.

    python examples/breast_cancer.py [--backend cupy] [--only adam,sgd] [--epochs 10] [--seed 0]

30 - 64 (sigmoid) - 32 (ReLU) - dropout 0.2 - 1 (sigmoid), without biases; 398 training samples and
30 % (171) held out; batches of 64, 100 epochs. The features are scaled to 0 … 1 by the minima and
maxima of the training samples alone; the tutorial used those of all samples. The last sigmoid is
part of the loss, BCEWithLogitsLoss: the network's output is a logit, positive where the probability
is above ½.

An epoch has one step with full batches and 398 with single samples, so the numbers of epochs are
larger and smaller for these two. Every learning rate falls to 0 along half a cosine, as a single
large step at the end may be a bad one. The rates were chosen for 0.95 on the held-out samples with
each of the seeds 0 to 9, so that this accuracy is no estimate for new patients.
"""

import argparse
from functools import partial

from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

import xbp
from xbp import nn, optim
from xbp.training import binary_accuracy

RUNS = {  # name: (optimizer, learning rate at the start, batch size, epochs)
    "SGD, single samples": (optim.SGD, 0.03, 1, 20),
    "SGD, full batch": (optim.SGD, 0.5, 398, 500),
    "SGD, minibatches": (optim.SGD, 0.3, 64, 100),
    "SGD, momentum 0.9": (partial(optim.SGD, momentum=0.9), 0.05, 64, 100),
    "SGD, average 0.9": (partial(optim.SGD, momentum=0.9, dampening=0.9), 0.4, 64, 100),
    "SGD, Nesterov 0.9": (partial(optim.SGD, momentum=0.9, nesterov=True), 0.05, 64, 100),
    "Adagrad": (optim.Adagrad, 0.03, 64, 100),
    "Adadelta": (optim.Adadelta, 1.0, 64, 100),
    "RMSprop": (optim.RMSprop, 0.003, 64, 100),
    "Adam": (optim.Adam, 0.003, 64, 100),
    "Adamax": (optim.Adamax, 0.01, 64, 100),
    "AdamW": (optim.AdamW, 0.003, 64, 100),
    "NAdam": (optim.NAdam, 0.003, 64, 100),
    "RAdam": (optim.RAdam, 0.01, 64, 100),
    "Lion": (optim.Lion, 0.001, 64, 100),
    "LAMB": (optim.LAMB, 0.02, 64, 100),
    "Muon": (optim.Muon, 0.02, 64, 100),
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--only", default="", help="parts of the names of what to run: adam,nesterov")
parser.add_argument("--epochs", type=int, help="for all of them, in place of their own numbers")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)
only = options.only.lower().split(",")
chosen = [name for name in RUNS if any(part in name.lower() for part in only)]
if not chosen:
    parser.error(f"no optimizer is called {options.only!r}; there are: {'; '.join(RUNS)}")

x, y = load_breast_cancer(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=101, test_size=0.3)
scaler = MinMaxScaler().fit(x_train)
x_train, x_test = (
    xbp.asarray(scaler.transform(part), dtype="float32") for part in (x_train, x_test)
)
y_train, y_test = (xbp.asarray(part.reshape(-1, 1)) for part in (y_train, y_test))

table = Table(
    "optimizer", "learning rate", "batch", "epochs", "last loss", "trained on", "held out"
)
reached = 0
for name in chosen:
    make, rate, batch_size, epochs = RUNS[name]
    epochs = options.epochs or epochs
    steps = epochs * -(-y_train.shape[0] // batch_size)
    model = xbp.models.MLP(
        30, 64, 32, 1, activation=[nn.Sigmoid, nn.ReLU], dropout=[0, 0.2], bias=False,
        rng=options.seed,
    )  # fmt: skip
    hidden = optim.muon_groups(model, lr=rate)  # and all other parameters, for AdamW
    parameters = hidden if make is optim.Muon else model.parameters()
    optimizer = make(parameters, lr=optim.CosineAnnealingLR(rate, steps))
    loss = nn.BCEWithLogitsLoss()
    trainer = xbp.Trainer(model, loss, optimizer, [binary_accuracy], rng=options.seed)
    history = trainer.fit(x_train, y_train, epochs, batch_size, verbose=False)
    seen, held_out = (
        trainer.evaluate(*part)["binary_accuracy"]
        for part in ((x_train, y_train), (x_test, y_test))
    )
    reached += held_out >= 0.95
    measured = f"{history['loss'][-1]:.4f}", f"{seen:.3f}", f"{held_out:.3f}"
    table.add_row(name, f"{rate:g} → 0", str(batch_size), str(epochs), *measured)

Console(width=100).print(table)
print(f"{reached} of {len(chosen)} reach 0.95 on the held-out samples")
