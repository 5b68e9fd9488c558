"""The directive ``digits``: a network that learns on the page, and the files that it needs.

    npm install --prefix docs/build onnxruntime-web@1.30.0

brings onnxruntime-web, whose files are copied into the site; the training step is exported by the
build. Where onnxruntime-web or ndonnx is missing, the site is built without, and says so.
"""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "docs" / "build" / "node_modules" / "onnxruntime-web" / "dist"
INSTALL = "npm install --prefix docs/build onnxruntime-web@1.30.0"
FROM_NPM = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FOLDER = ROOT / "docs" / "build" / "browser"
BATCH, STEPS = 32, 20
LEARNED, UNSEEN = 3000, 500


def missing() -> str:
    """What the page would need, as a sentence; empty if nothing is missing."""
    if not all((RUNTIME / name).exists() for name in FROM_NPM):
        return f"onnxruntime-web is not installed ({INSTALL})"
    if find_spec("ndonnx") is None:
        return 'ndonnx is not installed (pip install ".[onnx]")'
    return ""


def write(folder: Path) -> None:
    """Write the training step, the inference, what they start from, the digits, and the losses.

    ``digits.bin`` has the pixels of all images, then their labels; ``about.json`` says how many,
    and has the losses of xbp's first steps, with which the page compares its own.
    """
    import xbp
    from xbp import nn, optim
    from xbp.exchange import export_training_step, to_onnx
    from xbp.training import save_weights

    folder.mkdir(parents=True, exist_ok=True)
    (images, labels), (unseen, answers) = xbp.datasets.load_mnist()
    pixels = np.concatenate([images[:LEARNED], unseen[:UNSEEN]])
    classes = np.concatenate([labels[:LEARNED], answers[:UNSEEN]])
    (folder / "digits.bin").write_bytes(pixels.tobytes() + classes.astype("uint8").tobytes())
    x = xbp.datasets.standardize_images(images[: STEPS * BATCH])
    y = labels[: STEPS * BATCH].astype("int64")

    model, loss = xbp.models.LeNet5(rng=0), nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=0.002)
    batch = x[:BATCH], y[:BATCH]
    step = export_training_step(model, loss, optimizer, folder / "step.onnx", *batch)
    to_onnx(model, folder / "model.onnx", (1, 28, 28), weights_as_inputs=True)
    save_weights(step.start, folder / "start.safetensors")
    trainer = xbp.Trainer(model, loss, optimizer)
    losses = []
    for k in range(0, STEPS * BATCH, BATCH):
        trainer.step(x[k : k + BATCH], y[k : k + BATCH])
        losses.append(float(trainer.current_loss))
    mean, std = xbp.datasets.MNIST_MEAN, xbp.datasets.MNIST_STD
    about = {"batch": BATCH, "learned": LEARNED, "unseen": UNSEEN, "mean": mean, "std": std}
    about |= {"losses": losses, "nodes": sum(step.nodes.values())}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def in_chinese(html: str) -> str:
    """The network with Chinese words, and with the files of the English site, a folder above.

    Raises
    ------
    KeyError
        Words of the page are not in ``docs/zh/browser.json``.
    """
    text = (ROOT / "docs" / "zh" / "browser.json").read_text(encoding="utf-8")
    words = json.loads(text)

    def new(match: re.Match[str]) -> str:
        before, english, after = match.groups()
        return f"{before}{words[english]}{after}"

    html = re.sub(r'((?:>|aria-label=")\s*)([^<>"]*[A-Za-z][^<>"]*?)(\s*["<])', new, html)
    data = escape(json.dumps(words, ensure_ascii=False), quote=True)
    html = html.replace("<div ", f'<div data-words="{data}" ', 1)
    return html.replace("../_static/", "../../_static/")


class Digits(SphinxDirective):
    """The network, or a note that this site has none."""

    def run(self) -> list[nodes.Node]:
        reason = missing()
        if reason:
            text = f"This copy of the site was built without the network, as {reason}."
            return [nodes.note("", nodes.paragraph("", text))]
        html = (Path(__file__).parent / "browser.html").read_text(encoding="utf-8")
        if self.config.language == "zh_CN":
            html = in_chinese(html)
        return [nodes.raw("", html, format="html")]


def prepare(app: Any) -> None:
    """Make the files, and let Sphinx copy them into the site."""
    if app.config.language == "zh_CN":
        return
    reason = missing()
    if reason:
        print(f"start/browser.html has no network: {reason}")
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    write(FOLDER / "browser")
    for name in FROM_NPM:
        shutil.copy(RUNTIME / name, FOLDER / "browser" / name)
    app.config.html_static_path.append(str(FOLDER))


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("digits", Digits)
    app.connect("builder-inited", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
