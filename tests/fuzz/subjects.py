"""The files that are mutated, as xbp wrote them, and their readers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

import xbp
from fuzz import mutate
from xbp import nn, optim
from xbp.accelerators.cuda import tuned
from xbp.data import Files
from xbp.datasets import read_cifar, read_idx
from xbp.datasets.labelled_texts import PADDING, UNKNOWN
from xbp.report.language import load_vocabulary
from xbp.report.run import VOCABULARY, Run
from xbp.report.texts import Lexicon
from xbp.training import Checkpoints, EarlyStopping, load_model, load_weights, save_weights
from xbp.training.files.tensors import DIGEST, KEY, TensorFile, _digest

Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


class Subject:
    """A kind of file.

    Attributes
    ----------
    content : bytes
        The file, unharmed.
    load : callable ``path -> digest``
        Reads a file as xbp does, and says what came of it.
    mutations : list of (mutation, whether what still loads must be what it was)
    """

    def __init__(
        self,
        name: str,
        content: bytes,
        load: Callable[[Path], Any],
        *mutations: tuple[Mutation, bool],
    ) -> None:
        self.name, self.content, self.load, self.mutations = name, content, load, mutations


def subjects(folder: Path) -> list[Subject]:
    """All subjects, with their files in `folder`."""
    fit(folder / "checkpoints", epochs=2, stop=6)
    (checkpoint,) = folder.glob("checkpoints/step-00000006.safetensors")
    model = xbp.models.MLP(3, 4, 2, activation=nn.Tanh, rng=0)
    weights = folder / "model.safetensors"
    save_weights(model.state_dict(), weights, model=model)
    run = folder / "run"
    run.mkdir()
    example_run().save(run)
    (folder / "own").mkdir()
    own_run().save(folder / "own")
    vocabularies = language(folder / "language"), lexicon(folder / "texts")
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 5, 4, 3) + bytes(range(60))
    cifar = b"".join(bytes([label]) + bytes(range(256)) * 12 for label in range(3))
    npy = io.BytesIO()
    np.save(npy, np.arange(60, dtype=np.float32).reshape(5, 4, 3))
    bytes_, framed = (mutate.bytes_, True), (header, True)
    described = (document, False), (document_alone, True), (plausible, False)
    return [
        Subject("checkpoint", checkpoint.read_bytes(), resume, bytes_, framed, *described),
        Subject("weights", weights.read_bytes(), weights_of, bytes_, framed, *described),
        Subject("foreign weights", save(model.state_dict()), weights_of, (mutate.bytes_, False),
                (header, False)),
        Subject("run.json", (run / "run.json").read_bytes(), record_of, (mutate.bytes_, False),
                (json_file, False)),
        Subject("run.json of one's own", (folder / "own" / "run.json").read_bytes(), record_of,
                (mutate.bytes_, False), (json_file, False)),
        *(Subject(f"{name} of {load.__name__}", path.read_bytes(), load, (mutate.bytes_, False),
                  (json_file, False))
          for (path, load), name in zip(vocabularies, ["vocabulary.json"] * 2, strict=True)),
        Subject("samples", npy.getvalue(), samples_of, (mutate.bytes_, False), (npy_header, False)),
        Subject("IDX", idx, idx_of, (mutate.bytes_, False)),
        Subject("CIFAR", cifar, cifar_of, (mutate.bytes_, False), (whole_records, False)),
        Subject("IDX in gzip", gzip.compress(idx, mtime=0), idx_of, bytes_, (regzipped, False),
                (bomb, False)),
        Subject("tuned", tuned.path_of("90").read_bytes(), tuned_of, (mutate.bytes_, False),
                (json_file, False)),
    ]  # fmt: skip


# --- what reads them ---


def fit(folder: Path, epochs: int, stop: int = 0, resume: Path | None = None) -> bytes:
    """A digest of the parameters after a small training is resumed from a checkpoint."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    model = xbp.models.MLP(3, 4, 2, activation=nn.Tanh, dropout=0.2, rng=0)
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), optim.Adam(model.parameters()), ["accuracy", "f1"], rng=0
    )
    callbacks: list[Any] = [EarlyStopping(patience=9)]
    if stop:
        end = xbp.training.LambdaCallback(
            on_step_end=lambda t, _: t.stop("enough") if t.optimizer.steps == stop else None
        )
        callbacks += [end, Checkpoints(folder)]
    with np.errstate(all="ignore"):
        trainer.fit(x, y, epochs, 5, (x, y), callbacks, verbose=False, resume=resume)
    return digest({**model.state_dict(), "history": json.dumps(trainer.history.records).encode()})


def resume(path: Path) -> bytes:
    return fit(path.parent, epochs=2, resume=path)


def weights_of(path: Path) -> bytes:
    loaded = load_weights(path)
    if TensorFile(path).document:
        load_model(path)
    return digest(loaded)


def record_of(path: Path) -> str:
    folder = path.parent / "run"
    path.replace(folder / "run.json")
    return repr(Run.load(folder))


def tuned_of(path: Path) -> str:
    return repr(tuned.read(path, "90"))


def language(folder: Path) -> tuple[Path, Callable[[Path], str]]:
    """The vocabulary of a GPT, and what reads it."""
    model, found = xbp.models.GPT(3, 4, 1, 1, 2, rng=0), ["a", "\n", "ü"]

    def characters(path: Path) -> str:
        path.replace(folder / VOCABULARY)
        return repr(load_vocabulary(folder, model))

    return written(folder, json.dumps({"unit": "characters", "vocabulary": found})), characters


def lexicon(folder: Path) -> tuple[Path, Callable[[Path], str]]:
    """The words and classes of a text classifier, and what reads them."""
    model = xbp.models.TextClassifier(4, 2, width=2, hidden=2, rng=0)
    found = Lexicon([PADDING, UNKNOWN, "a", "ü"], ["no", "yes"], 5, "/somewhere")

    def words(path: Path) -> str:
        path.replace(folder / VOCABULARY)
        loaded = Lexicon.load(folder, model)
        loaded.encode(["A ü, no"])
        return repr([loaded, loaded.name(1)])

    return written(folder, found.dumps()), words


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / VOCABULARY).write_text(text, encoding="utf-8")
    return folder / VOCABULARY


def idx_of(path: Path) -> bytes:
    return digest({"array": read_idx(path)})


def samples_of(path: Path) -> bytes:
    source = Files(path)
    order = np.arange(min(len(source), 1000))[::-1]
    return digest({"first": source.batch(order)})


def cifar_of(path: Path) -> bytes:
    images, labels = read_cifar(path)
    return digest({"images": images, "labels": labels})


def digest(values: dict[str, Any]) -> bytes:
    result = hashlib.sha256()
    for name, value in sorted(values.items()):
        kind = f"{name} {getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}"
        result.update(kind.encode())
        result.update(value if isinstance(value, bytes) else np.asarray(value).tobytes())
    return result.digest()


def example_run() -> Run:
    return Run(
        command="xbp train lenet5", title="LeNet-5", classes=10, backend="numpy (cpu)", seed=0,
        epochs=2, batch_size=64, images=300, test_images=100, data_dir=None,
        started="2026-11-21T08:00:00+00:00",
        seconds=[1.5, 1.25], rate=1e4, memory="100 MB", stopped="all 2 epochs done",
        environment={"numpy": "2.4"}, steps={"epoch": [0.5], "loss": [2.3], "lr": [1e-3]},
    )  # fmt: skip


def own_run() -> Run:
    layers = [["0", "Linear", "3", "8"], ["1", "Tanh", "3", "0"]]
    return replace(example_run(), data="own", sample_shape=[2, 3], layers=layers, classes=0)


# --- mutations that keep the frame of a format, and so reach what is inside ---


def _framed(parts: Any, data: bytes) -> bytes:
    written = parts if isinstance(parts, bytes) else json.dumps(parts).encode()
    return struct.pack("<Q", len(written)) + written + data


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def header(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Names, dtypes, shapes and offsets of a safetensors file."""
    parts, data = _parts(content)
    kept = parts.pop("__metadata__", None)
    parts = mutate.json_(choose, parts)
    if isinstance(parts, dict):
        for entry in parts.values():
            if choose.random() < 0.1 and isinstance(entry, dict):
                entry["dtype"] = choose.choice(("BF16", "F8_E4M3", "F4", "C64", "U8", "I64", "F64"))
                entry["shape"] = choose.choice(([], [0], [1 << 40], [0, 1 << 62], [1] * 99, [-1]))
        parts |= {"__metadata__": kept} if kept else {}
    return _framed(mutate.text(choose, parts).encode(errors="replace"), data)


def plausible(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Other names, shapes of equal size and dtypes of equal width, with a valid checksum."""
    parts, data = _parts(content)
    names = [name for name in parts if name != "__metadata__"]
    for _ in range(choose.randint(1, 2)):
        name = choose.choice(names)
        entry, kind = parts[name], parts[name]["dtype"]
        match choose.randrange(4):
            case 0:
                size = int(np.prod(entry["shape"]))
                entry["shape"] = choose.choice(([size], [1, size], [size, 1], [1] * 70 + [size]))
            case 1:
                entry["dtype"] = {"F32": "I32", "F64": "I64", "I64": "F64"}.get(kind, kind)
            case 2:
                other = choose.choice(
                    (*names, "optimizer.99.m", "optimizer.x", "callbacks.0.x", "")
                )
                parts = {other if key == name else key: value for key, value in parts.items()}
                names = [key for key in parts if key != "__metadata__"]
            case 3:
                begin, end = entry["data_offsets"]
                data = data[:begin] + choose.randbytes(end - begin) + data[end:]
    parts["__metadata__"][KEY] = _signed(json.loads(parts["__metadata__"][KEY]), parts, data)
    return _framed(parts, data)


def _signed(found: dict[str, Any], parts: dict[str, Any], data: bytes) -> str:
    found.pop(DIGEST, None)
    kinds = {"F32": "f4", "F64": "f8", "I64": "i8", "I32": "i4"}
    arrays = {}
    for name, entry in parts.items():
        if name != "__metadata__" and len(entry["shape"]) < 64:
            flat = np.frombuffer(data[slice(*entry["data_offsets"])], kinds[entry["dtype"]])
            arrays[name] = flat.reshape(entry["shape"])
    return json.dumps({**found, DIGEST: _digest(json.dumps(found), arrays)})


def _described(choose: random.Random, content: bytes, signed: bool) -> bytes:
    parts, data = _parts(content)
    found = json.loads(parts["__metadata__"][KEY])
    old = found.pop(DIGEST)
    written = mutate.text(choose, mutate.json_(choose, found))
    try:
        found = json.loads(written)
        written = _signed(found, parts, data) if signed else json.dumps({**found, DIGEST: old})
    except (ValueError, RecursionError, TypeError, AttributeError):
        pass  # not a JSON object: unchanged
    parts["__metadata__"][KEY] = written
    return _framed(parts, data)


def document(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Mutated metadata of xbp with a valid checksum: an attack."""
    return _described(choose, content, signed=True)


def document_alone(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Mutated metadata of xbp with the old checksum: an accident, which must be noticed."""
    return _described(choose, content, signed=False)


def json_file(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    return mutate.text(choose, mutate.json_(choose, json.loads(content))).encode(errors="replace")


def npy_header(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Other shapes, types and orders in the header of a .npy file, which keeps its length."""
    header = {
        "descr": choose.choice(("<f4", ">f4", "<f8", "|u1", "|b1", "|O", "<U3", "<c8", "<M8[s]")),
        "fortran_order": choose.choice((False, True)),
        "shape": choose.choice(((), (60,), (5, 12), (1 << 62,), (0, 3), (-1, 60), (1 << 40, 0))),
    }
    return content[:10] + repr(header).encode()[:117].ljust(117) + b"\n" + content[128:]


def whole_records(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A random number of CIFAR-10 records with random labels."""
    return choose.randbytes(3073 * choose.randrange(4))


def regzipped(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    return gzip.compress(mutate.bytes_(choose, gzip.decompress(content), others), 1)


def bomb(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A short file that unpacks to 32 MiB, with any header."""
    shape = [choose.choice((1, 255, 2**16, 2**31, 2**32 - 1)) for _ in range(choose.randint(1, 3))]
    start = struct.pack(f">4B{len(shape)}I", 0, 0, choose.choice((8, 14)), len(shape), *shape)
    compressor = zlib.compressobj(1, wbits=31)
    chunks = [compressor.compress(start), *(compressor.compress(bytes(1 << 20)) for _ in range(32))]
    return b"".join([*chunks, compressor.flush()])
