"""Faults on purpose, in the manner of SQLite: the n-th system call of each writer fails.

    python tests/faults                 # on Linux, with a C compiler
    python tests/faults --only weights

For every kind of file that xbp writes, and for n = 1, 2, 3, … until the writer succeeds without a
fault, the n-th call (open, write, fsync, rename, close, mkdir, unlink, …) fails: no space, an
input/output error, an interruption, a write of half of the bytes, or the process is killed there.
Then every file must be the old or the new one, whole; an error must be one sentence of xbp's, and
must not call a replaced file untouched; the next writer must succeed, and leave nothing else in the
folder. Prints a table of calls and outcomes. Exit status 1 if any of this fails. Writers that need
a package that is missing are left out, and named.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[0] = str(ROOT)
MOST_CALLS, MOST_FAILURES = 2000, 5
REMOVALS = ("unlink", "unlinkat", "rmdir", "open", "openat", "close")
"""Calls whose failure may leave a staging folder to the next writer."""


class Kind(NamedTuple):
    """A kind of fault, as in faults.c."""

    name: str
    mode: int
    error: int = 0


KINDS = (
    Kind("no space", 0, errno.ENOSPC),
    Kind("I/O error", 0, errno.EIO),
    Kind("interrupted", 1, errno.EINTR),
    Kind("half a write", 2),
    Kind("killed", 3),
)
Files = dict[str, bytes]
PICTURES = ("matplotlib.figure", "matplotlib.backends.backend_agg")
ARCHIVE = "cifar-10-binary.tar.gz"


class Writer(NamedTuple):
    """What is written into a folder that has `before`, and whether a file is whole on its own."""

    name: str
    before: Callable[[Path], object]
    write: Callable[[Path], object]
    is_whole: Callable[[Path, bytes], bool] = lambda path, last: False
    writes_once: bool = True
    packages: tuple[str, ...] = ()
    passing: Files = {}  # noqa: RUF012 - nobody changes it
    """Files that are there for a while."""


def writers() -> list[Writer]:
    """Every kind of file."""
    import numpy as np

    import xbp
    from xbp import nn, optim
    from xbp.datasets.fetching import fetch
    from xbp.exchange import to_onnx
    from xbp.report.page import write_report
    from xbp.report.run import Run
    from xbp.training import (
        Checkpoints,
        CSVLogger,
        ModelCheckpoint,
        TensorBoard,
        load_weights,
        save_weights,
    )
    from xbp.training.files.tensors import TensorFile
    from xbp.training.files.writing import replacing, write_text

    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
    y = (x[:, 0] > 0).astype(np.int64)
    small = xbp.models.MLP(3, 4, 2, activation=nn.Tanh, rng=0)
    other = xbp.models.MLP(3, 4, 2, activation=nn.Tanh, rng=1)

    def fitted(*callbacks: xbp.training.Callback, resume: Path | None = None) -> xbp.Trainer:
        model = xbp.models.MLP(3, 4, 2, activation=nn.Tanh, rng=0)
        optimizer = optim.Adam(model.parameters(), 0.01)
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0)
        trainer.fit(x, y, 3, 4, callbacks=list(callbacks), verbose=False, resume=resume)
        return trainer

    def save(model: nn.Layer) -> Callable[[Path], object]:
        return lambda folder: save_weights(model.state_dict(), folder / "w", model=model)

    def readable(path: Path, last: bytes) -> bool:
        TensorFile(path).read()
        return True

    def readable_weights(path: Path, last: bytes) -> bool:
        return bool(load_weights(path))

    def whole_lines(path: Path, last: bytes) -> bool:
        content = path.read_bytes()
        return last.startswith(content) and content[-1:] in (b"", b"\n")

    def readable_run(path: Path, last: bytes) -> bool:
        return path.name == "run.json" and bool(Run.load(path.parent))  # with the memory used

    def text(content: str) -> Callable[[Path], object]:
        return lambda folder: write_text(folder / "text", content)

    def nothing(folder: Path) -> None:
        pass

    def begins(path: Path, last: bytes) -> bool:
        return last.startswith(path.read_bytes())  # a last record may be cut, as after a kill

    def ends(path: Path, last: bytes) -> bool:
        content = path.read_bytes().rstrip()  # with times, as in the record of the run
        return path.name == "run.json" or content.endswith(b"</html>")

    def exported(folder: Path) -> object:
        return to_onnx(small, folder / "onnx", (3,))

    def drawn(folder: Path) -> None:
        from xbp.training.plots import plot_learning_curves

        figure = plot_learning_curves(history)
        with replacing(folder / "png") as path:
            figure.savefig(path, format="png")

    def run_without_page(folder: Path) -> None:
        fitted().save(folder / "run")

    def page(folder: Path) -> None:
        write_report(folder / "run", folder / "report.html")

    history = fitted().history
    return [
        Writer("weights, new", nothing, save(small)),
        Writer("weights, replaced", save(other), save(small)),
        Writer("text, new", nothing, text("new\n" * 5000)),
        Writer("text, replaced", text("old\n" * 9000), text("new\n" * 5000)),
        Writer("history", text("old"), lambda folder: history.to_csv(folder / "text")),
        Writer("run", nothing, lambda folder: fitted().save(folder / "run"), readable_run),
        Writer("CSVLogger", nothing, lambda folder: fitted(CSVLogger(folder / "log")),
               whole_lines, False),
        Writer("Checkpoints", nothing, lambda folder: fitted(
               Checkpoints(folder, 2), resume=folder), readable, False),
        Writer("ModelCheckpoint", save(other), lambda folder: fitted(
               ModelCheckpoint(folder / "w", "loss", save_weights_only=True)),
               readable_weights, False),
        Writer("TensorBoard", nothing, lambda folder: fitted(TensorBoard(folder / "log")),
               begins, False, ("tensorboardX",)),
        Writer("ONNX", text("old"), exported, packages=("onnx", "ndonnx", "onnxruntime")),
        Writer("picture", text("old"), drawn, packages=PICTURES),
        Writer("report", run_without_page, page, ends, packages=("jinja2", *PICTURES)),
        Writer("download", nothing, lambda folder: fetch("cifar10", folder / "data"), begins,
               packages=("pooch",), passing={f"data/{ARCHIVE}": archive()}),
    ]  # fmt: skip


def archive() -> bytes:
    """An archive as that of CIFAR-10, of small files."""
    from xbp.datasets import known

    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as packed:
        for name in known.CIFAR10.members:
            info = tarfile.TarInfo(f"{known.CIFAR10.folder}/{name}")
            info.size = 3000
            packed.addfile(info, io.BytesIO(name.encode().ljust(info.size)))
    return target.getvalue()


@contextmanager
def served() -> Iterator[None]:
    """A server on this machine, from which CIFAR-10 is fetched meanwhile."""
    from xbp.datasets import known

    content = archive()
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory() as name:
        Path(name, ARCHIVE).write_bytes(content)
        command = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", name]
        with subprocess.Popen(
            [sys.executable, "-u", *command], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as server:  # fmt: skip
            try:
                assert server.stdout is not None
                port = server.stdout.readline().split(" port ")[1].split()[0]
                usual = known.SETS["cifar10"]
                file = usual.downloads[0]._replace(
                    url=f"http://127.0.0.1:{port}/{ARCHIVE}",
                    size=len(content), sha256=hashlib.sha256(content).hexdigest(),
                )  # fmt: skip
                known.SETS["cifar10"] = usual._replace(downloads=(file,))
                yield
            finally:
                server.terminate()


def files_in(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".xbp-" not in str(path)
    }


def staged(folder: Path) -> list[Path]:
    return list(folder.rglob(".xbp-*"))


class Faults:
    """The library of faults.c in this process, which was loaded before the C library."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        self.library.faults_name.restype = ctypes.c_char_p
        self.library.faults_calls.restype = ctypes.c_long

    def run(
        self, write: Callable[[Path], object], folder: Path, call: int, kind: Kind
    ) -> dict[str, Any]:
        """Write in a process of its own, whose call number `call` fails; what became of it."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            answer = {"outcome": "done", "sentence": ""}
            self.library.faults_arm(os.fsencode(folder), ctypes.c_long(call), kind.mode, kind.error)
            try:
                write(folder)
            except BaseException as error:
                from xbp.errors import XBPError

                is_ours = isinstance(error, XBPError)
                answer["outcome"] = "refused" if is_ours else type(error).__name__
                answer["sentence"] = str(error)
            self.library.faults_disarm()
            answer["call"] = self.library.faults_name().decode()
            os.write(theirs, json.dumps(answer).encode())
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            said = pipe.read()
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}"
            return {"outcome": "killed", "sentence": "", "call": "kill"}
        return json.loads(said)


def one(
    faults: Faults, writer: Writer, new: Files, folder: Path, call: int, kind: Kind
) -> dict[str, Any]:
    """One fault; an AssertionError describes a violation."""
    writer.before(folder)
    old = files_in(folder)
    found = faults.run(writer.write, folder, call, kind)
    assert found["outcome"] in ("done", "refused", "killed"), found
    sentence = found["sentence"]
    assert "\n" not in sentence, f"not one sentence: {sentence}"
    after = files_in(folder)
    for name, content in after.items():
        if content not in (old.get(name), new.get(name), writer.passing.get(name)):
            whole = writer.is_whole(folder / name, new.get(name, b""))
            assert whole, f"{name} is in pieces"
    lost = [name for name in old if name in new and name not in after]
    assert not lost, f"{lost} are lost"
    if found["outcome"] == "done":
        assert after.keys() - writer.passing == new.keys(), "it did not fail, and files are missing"
        unlike = [name for name in new if after[name] != new[name]]
        assert all(writer.is_whole(folder / name, new[name]) for name in unlike), unlike
    if "untouched" in sentence and writer.writes_once:
        assert after == old, f"said untouched: {found}"
    if staged(folder):
        assert found["outcome"] == "killed" or found["call"] in REMOVALS, f"litter after {found}"
    again = faults.run(writer.write, folder, 0, KINDS[0])
    assert again["outcome"] == "done", f"the next writer fails: {again}"
    assert not staged(folder), "the next writer leaves litter"
    more = files_in(folder).keys() ^ new.keys()
    may_stay = found["call"] in (*REMOVALS, "kill") and more <= writer.passing.keys()
    assert not more or may_stay, f"{more} stays"
    return found


def trials(faults: Faults, writer: Writer, work: Path) -> tuple[Counter[str], int]:
    """Every call with every kind of fault: the number of each outcome, and of the calls."""
    place = work / "new"
    place.mkdir()
    writer.before(place)
    assert faults.run(writer.write, place, 0, KINDS[0])["outcome"] == "done"
    new, outcomes, most = files_in(place), Counter(), 0
    for kind in KINDS:
        for call in range(1, MOST_CALLS):
            folder = work / f"{KINDS.index(kind)}_{call}"
            folder.mkdir()
            try:
                found = one(faults, writer, new, folder, call, kind)
            except AssertionError as error:
                sys.stdout.write(f"{writer.name}, {kind.name} at call {call}: {error}\n")
                found = {"outcome": "FAILED", "call": "?"}
            if not found["call"] or outcomes["FAILED"] > MOST_FAILURES:  # there are fewer calls
                break
            outcomes[found["outcome"]] += 1
            most = max(most, call)
        else:
            outcomes["FAILED"] += 1
    return outcomes, most


def restarted() -> NoReturn:
    """Compile the faults, and start this program again with them loaded first."""
    sys.path.insert(0, str(ROOT / "tests"))
    from processes import search_path

    compiler = os.environ.get("CC") or "cc"
    with tempfile.TemporaryDirectory() as name:
        library = str(Path(name, "faults.so"))
        command = [compiler, "-shared", "-fPIC", "-O1", str(HERE / "faults.c"), "-o", library]
        subprocess.run([*command, "-ldl"], check=True)
        environment = os.environ | {
            "LD_PRELOAD": library, "XBP_FAULTS": library, "PYTHONPATH": search_path(),
            "XBP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, str(HERE), *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def missing(packages: tuple[str, ...]) -> str:
    """The first package that cannot be imported; the others are imported for all processes."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            return package
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="writers with this in their name")
    chosen = parser.parse_args()
    if "XBP_FAULTS" not in os.environ:
        restarted()
    time.time = time.perf_counter = lambda: 0.0  # durations are written, and would differ
    faults, failed, all_outcomes, calls = Faults(os.environ["XBP_FAULTS"]), False, Counter(), 0
    sys.stdout.write(
        f"{'writer':20}{'calls':>6}{'refused':>9}{'done':>6}{'killed':>8}{'FAILED':>8}\n"
    )
    for writer in writers():
        if chosen.only not in writer.name:
            continue
        if lacking := missing(writer.packages):
            sys.stdout.write(f"{writer.name:20}left out: {lacking} is not installed\n")
            continue
        with (
            served() if writer.name == "download" else nullcontext(),
            tempfile.TemporaryDirectory() as name,
        ):
            outcomes, most = trials(faults, writer, Path(name))
        failed |= bool(outcomes["FAILED"])
        all_outcomes += outcomes
        calls += most
        widths = {"refused": 9, "done": 6, "killed": 8, "FAILED": 8}
        numbers = "".join(f"{outcomes[which]:>{width}}" for which, width in widths.items())
        sys.stdout.write(f"{writer.name:20}{most:>6}{numbers}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{sum(all_outcomes.values())} faults in {calls} calls\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
