"""Commands under conditions that a developer's machine does not have.

    python tests/conditions.py
    python tests/conditions.py home     # the usual ones, and those with this in their name

trains LeNet-5 with checkpoints, reports on it and exports it by the commands: under ``-O`` and
``-OO``, with ``LANG=C`` and no UTF-8, with warnings as errors, from and to paths with spaces,
umlauts and quotes, as another user than root, with a home that cannot be written to, without a
home, and with a full standard output (``/dev/full``). Each must end with status 0, print no
traceback, and give the weights of the usual conditions, bit for bit; with a full output, one
sentence. Linux; only root can become another user. Exit status 1 if something fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from processes import search_path

ROOT = Path(__file__).parents[1]
NOBODY = 65534
PACKAGES = [Path(path) for path in sys.path[1:] if path and Path(path) != ROOT]
"""Where this interpreter finds them: that of another user has other places."""
ODD = "Übung mit 'Anführung' und  Leerzeichen"


class Condition(NamedTuple):
    name: str
    options: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    folder: str = ""
    user: int = 0
    home: int | None = 0o755  # its permissions


C = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
USUAL = Condition("usual")
CONDITIONS = (
    USUAL,
    Condition("-O", ("-O",)),
    Condition("-OO", ("-OO",)),
    Condition("LANG=C", variables=C),
    Condition("warnings as errors", ("-W", "error", "-X", "dev")),
    Condition("odd paths", folder=ODD),
    Condition("odd paths, LANG=C", folder=ODD, variables=C),
    Condition("another user", user=NOBODY),
    Condition("read-only home", user=NOBODY, home=0o555),
    Condition("no home", user=NOBODY, home=None),
)


def commands(folder: Path) -> list[list[str]]:
    """The commands, with what they write in `folder`."""
    run, sizes = str(folder / "run"), ["--limit", "640", "--batch-size", "64"]
    train = ["train", "lenet5", *sizes, "--output", run]
    return [
        ["info"],
        [*train, "--epochs", "2", "--checkpoint-every", "5", "--report"],
        ["report", run, "--output", str(folder / "page é.html")],
        ["export", run, "--onnx", str(folder / "model é.onnx")],
    ]


def readable_python() -> str | None:
    """An interpreter of this version that another user may run; None if there is none."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)
            environment = {"PYTHONPATH": search_path(*PACKAGES), "HOME": name}
            command = [python, "-c", "import numpy, sys; print(sys.version_info[:2])"]
            try:
                said = subprocess.run(
                    command, env=environment, user=NOBODY, group=NOBODY, extra_groups=[], cwd=name,
                    capture_output=True, text=True, check=False,
                ).stdout  # fmt: skip
            except OSError:
                continue
            if said.strip() == str(sys.version_info[:2]):
                return python
    return None


def tried(condition: Condition, work: Path, python: str) -> str:
    """The digest of the weights; an AssertionError says what went wrong."""
    folder = work / (condition.folder or "plain")
    folder.mkdir()
    shutil.copytree(ROOT / "xbp", folder / "code" / "xbp")
    (folder / "out").mkdir()
    os.chown(folder / "out", condition.user, condition.user)
    kept = ("PATH", "TMPDIR", "XBP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"PYTHONPATH": search_path(folder / "code", *PACKAGES)}
    environment |= {"LANG": "C.UTF-8", "COLUMNS": "80", **condition.variables}
    if condition.home is not None:
        (folder / "home").mkdir(mode=condition.home)
        environment["HOME"] = str(folder / "home")
    who = {"user": condition.user, "group": condition.user, "extra_groups": []}
    for words in commands(folder / "out"):
        done = subprocess.run(
            [python, *condition.options, "-m", "xbp", *words], cwd=folder / "out", env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            **(who if condition.user else {}),
        )  # fmt: skip
        said = done.stdout.decode("utf-8", "replace")
        shown = f"xbp {' '.join(words[:2])}: status {done.returncode}\n{said[-3000:]}"
        assert done.returncode == 0 and "Traceback" not in said, shown
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [python, *condition.options, "-m", "xbp", "info"], env=environment, cwd=folder / "out",
            stdout=full, stderr=subprocess.PIPE, check=False, **(who if condition.user else {}),
        )  # fmt: skip
    assert done.returncode and b"Traceback" not in done.stderr, done.stderr[-3000:].decode()
    return hashlib.sha256((folder / "out/run/model.safetensors").read_bytes()).hexdigest()


def main() -> int:
    bad, usual = 0, ""
    can_change = os.geteuid() == 0
    other = readable_python() if can_change else None
    for condition in CONDITIONS:
        is_chosen = any(word in condition.name for word in sys.argv[1:] or [""])
        if not is_chosen and condition is not USUAL:  # all are compared with the usual one
            continue
        if condition.user and other is None:
            sys.stdout.write(f"{condition.name:22}not tried: no interpreter for another user\n")
            continue
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)
            python = other if condition.user and other else sys.executable
            try:
                found = tried(condition, Path(name), python)
                usual = usual or found
                result = "passed" if found == usual else "OTHER WEIGHTS"
            except AssertionError as error:
                result = f"FAILED: {error}"
        bad += result != "passed"
        sys.stdout.write(f"{condition.name:22}{result}\n")
        sys.stdout.flush()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
