"""The script that made these files, at commit 9756be1 on a CPU; a record, not to be run.

    cd CHECKOUT && OPENBLAS_NUM_THREADS=1 python -P …/tests/golden/write.py

CHECKOUT is that commit; `problems.py` is then the file beside this one, as it was added with it.
Files of a later version differ only in times, versions and rounding, as `test_golden.py` checks. A
new format gets its own files beside these, which stay.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy

import xbp
from xbp.accelerators import disabled
from xbp.cli import main
from xbp.exchange import to_onnx
from xbp.random import RandomStream, permutation
from xbp.training import save_weights

sys.path.insert(0, str(Path(__file__).parent))
from problems import (
    CLI,
    CLI_MIDDLE,
    DRAWS,
    FILES,
    MODELS,
    NAMED,
    ORDERS,
    TRAININGS,
    checkpoint,
    small28,
    spread,
)


def weights() -> dict[str, Any]:
    """Files of weights; returns the outputs of their models.

    Those of LeNet-5 are multiples of 1/512, as files of random ones cannot be made small.
    """
    outputs = {}
    for name, (make, x) in (MODELS | NAMED).items():
        model = make()
        path = FILES / "weights" / f"{name}.safetensors"
        if isinstance(model, xbp.models.LeNet5):
            for key, p in model.named_parameters():
                p.data = spread(*p.shape, dtype=p.data.dtype, shift=len(key)) / 4
        save_weights(model.state_dict(), path, model=model if name in NAMED else None)
        outputs[name] = model(x).tolist()
        if path.stat().st_size > 20_000:
            squeeze(path)
    safetensors.numpy.save_file({"a": spread(2, 3)}, FILES / "weights" / "of_others.safetensors")
    return outputs


def squeeze(path: Path) -> None:
    path.with_name(path.name + ".xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
    path.unlink()


def trainings() -> None:
    for name, training in TRAININGS.items():
        target = FILES / "trainings" / name
        target.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as folder:
            trainer = training.run(Path(folder))
            steps = trainer.optimizer.steps
            shutil.copy(checkpoint(Path(folder), training.middle), target / "middle.safetensors")
            shutil.copy(checkpoint(Path(folder), steps), target / "end.safetensors")
            log = Path(folder) / "log.csv"
            if log.exists():
                shutil.copy(log, target)


def command(*arguments: object) -> None:
    sys.argv = ["xbp", *map(str, arguments)]
    with suppress(SystemExit):
        main()


def command_line() -> None:
    """Folders of `xbp train`: one finished, and one in the middle, with what it ended with."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        command(*CLI, "--output", "run")
        for name in ("run.json", "history.csv", "model.safetensors"):
            (FILES / "run").mkdir(exist_ok=True)
            shutil.copy(Path("run") / name, FILES / "run" / name)
        squeeze(FILES / "run" / "model.safetensors")
        with mock.patch.object(xbp.models, "LeNet5", small28):
            command(*CLI, "--checkpoint-every", 3, "--output", "small")
        target = FILES / "interrupted"
        (target / "checkpoints").mkdir(parents=True)
        shutil.copy(checkpoint(Path("small/checkpoints"), CLI_MIDDLE), target / "checkpoints")
        for name in ("run.json", "history.csv", "model.safetensors"):
            shutil.copy(Path("small") / name, target / f"end.{name}")


def reports() -> None:
    """A certificate, a benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        backends = ["--backend", "numpy", "--backend", "array_api_strict"]
        command("parity", "--only", "ReLU", *backends, "--json", "parity.json")
        shutil.copy("parity.json", FILES)
        bench = ["bench", "call", "lenet5-train", "--batch", "32", "--side", "xbp"]
        bench += ["--side", "reference", "--side", "torch", "--threads", "1", "--quick"]
        command(*bench, "--json", FILES / "bench.json", "--markdown", FILES / "bench.md")


def onnx() -> None:
    model = MODELS["small"][0]()
    to_onnx(model, FILES / "small.onnx", (1, 8, 8))


def write() -> None:
    shutil.rmtree(FILES, ignore_errors=True)
    (FILES / "weights").mkdir(parents=True)
    with disabled():
        outputs = weights()
    expected = {
        "outputs": outputs,
        "orders": [permutation(*each).tolist() for each in ORDERS],
        "bits": [
            [stream.bits((n,), like=np.zeros(1)).tolist() for _ in range(2)]
            for seed, step, n in DRAWS
            for stream in [RandomStream(seed, step=step)]
        ],
    }
    (FILES / "expected.json").write_text(json.dumps(expected) + "\n")
    onnx()
    with disabled():
        trainings()
        command_line()
    reports()


if __name__ == "__main__":
    write()
