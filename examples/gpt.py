"""A small GPT that learns to write like a text, character by character.

python examples/gpt.py TEXT [--steps 2000] [--layers 4] [--heads 4] [--width 128] [--context 64]

The default run takes some minutes on two cores. Its settings are those of nanoGPT for a CPU, which
reports a validation loss of 1.88 on Shakespeare's plays (https://github.com/karpathy/nanoGPT). Only
the learning rate differs: it is twice as high and falls almost to 0.
"""

import argparse

import numpy as np

import xbp
from xbp import nn, optim

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("text", help="a text file; its last tenth is kept for validation")
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=12)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--heads", type=int, default=4)
parser.add_argument("--width", type=int, default=128)
parser.add_argument("--context", type=int, default=64)
parser.add_argument("--rate", type=float, default=2e-3)
parser.add_argument("--sample", type=int, default=300, help="how many characters to write")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

tokens, vocabulary = xbp.datasets.load_text(options.text)
training, validation = np.split(tokens, [len(tokens) * 9 // 10])
print(f"{len(tokens):,} characters, {len(vocabulary)} different ones")

sizes = len(vocabulary), options.context, options.layers, options.heads, options.width
model = xbp.models.GPT(*sizes, rng=options.seed)
loss = nn.CrossEntropyLoss()
rate = optim.OneCycleLR(options.rate, options.steps, pct_start=0.05)
groups = optim.decay_groups(model, weight_decay=0.1)  # for matrices only
optimizer = optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
rng = np.random.default_rng(options.seed)


def batch(tokens, starts, train=True):
    """The loss of each next character, and its backward."""
    x, y = map(xbp.asarray, xbp.datasets.text_windows(tokens, starts, options.context))
    logits, backward = model.forward(x, training=train)
    rows = logits.shape[0] * logits.shape[1], logits.shape[2]  # one row for each character
    xp = xbp.get_backend().xp
    value, gradient = loss(xp.reshape(logits, rows), xp.reshape(y, (-1,)))
    return value, lambda: nn.for_parameters(backward)(xp.reshape(gradient, logits.shape))


for step in range(1, options.steps + 1):
    starts = rng.integers(len(training) - options.context, size=options.batch_size)
    value, backward = batch(training, starts)
    backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % max(options.steps // 10, 1) == 0:  # printing waits for the device
        print(f"step {step}: loss {float(xbp.to_numpy(value)):.3f}", flush=True)

every = range(0, len(validation) - options.context, options.context)
parts = [every[i : i + 64] for i in range(0, len(every), 64)]
total = sum(
    len(part) * float(xbp.to_numpy(batch(validation, part, train=False)[0])) for part in parts
)
print(f"validation loss {total / len(every):.3f}")
written = model.generate(tokens[:1], options.sample, rng=options.seed)
print(xbp.datasets.decode_text(written, vocabulary))
