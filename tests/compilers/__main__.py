"""The kernels by every compiler at hand, for every system and processor.

    python tests/compilers              # compile, and run the driver
    python tests/compilers --tests      # here, also the tests against the references
    python tests/compilers --sanitize   # errors of memory, undefined behaviour, races; natively
    python tests/compilers --times      # a step of LeNet-5 by Clang's kernels and by GCC's

Prints a table of system, compiler and level: passed, or only compiled where nothing runs the
result, or not at hand. A warning is an error. ``driver.c`` compares kernels with their definitions
without Python; qemu-user emulates other processors, and Wine runs programs for Windows. Debian's
packages are clang, qemu-user, gcc-aarch64-linux-gnu, gcc-mingw-w64-x86-64 and wine64. Exit status
1 if anything fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from xbp.accelerators.cpu import build, native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
AGAINST = (
    *("test_against_reference.py", "test_batch_norm.py", "test_compiled_rows.py"),
    *("test_compiled_recurrence.py", "test_compiled_attention.py", "test_compiled_embedding.py"),
    "test_dense.py",
    "test_updates.py",
)
CHOSEN = "not alone and not in_threes and not unaligned and not mirrored"
RUN_TESTS = """
import pathlib, sys, pytest
from xbp.accelerators.cpu import native
native.library_path = lambda level: pathlib.Path(sys.argv[1])
assert native.library() is not None, native.status()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", *sys.argv[2:]]))
"""
SANITIZERS = (
    ("address,undefined", ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer")),
    ("thread", ()),
)
OPTIMIZED = {"gcc": "-O1", "clang": "-O0"}
"""Clang's optimizer takes minutes for what UndefinedBehaviorSanitizer adds, and might remove what
is undefined before it is checked."""

MOST_RATIO, ROUNDS = 1.15, 5
STEPS = """
import pathlib, sys, time
import numpy as np
from xbp.accelerators.cpu import native
native.library_path = lambda level: pathlib.Path(sys.argv[1])
native.threads = lambda: 1
assert native.library() is not None, native.status()
from xbp import models, nn, optim
draw = np.random.default_rng(0)
x, y = draw.normal(size=(128, 1, 28, 28)).astype(np.float32), draw.integers(0, 10, 128)
model = models.LeNet5(rng=0)
loss, optimizer, times = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.01), []
for _ in range(40):
    times.append(time.thread_time())
    logits, backward = model.forward(x, training=True)
    backward(loss(logits, y)[1])
    optimizer.step()
    optimizer.zero_grad()
print(min(b - a for a, b in zip(times, times[1:])))
"""


class Target(NamedTuple):
    """A compiler for a system and a processor, and what runs its programs here."""

    name: str
    system: str  # as `sys.platform`
    machine: str
    compiler: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # other commands, or folders
    runner: tuple[str, ...] = ()

    @property
    def is_clang(self) -> bool:
        return self.compiler == "clang"

    def missing(self) -> list[str]:
        """What it needs that is not at hand."""
        wanted = (self.compiler, *self.needs)
        return [name for name in wanted if not (shutil.which(name) or Path(name).is_dir())]


ARM, QEMU = "/usr/aarch64-linux-gnu", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
WINE = next((p for p in ("wine64", "/usr/lib/wine/wine64", "wine") if shutil.which(p)), "wine64")
MINGW = "x86_64-w64-mingw32-gcc"


def folder_of_libgcc() -> tuple[str, ...]:
    """The option by which Clang finds the library of Debian's MinGW in its own folder."""
    if not shutil.which(MINGW):
        return ()
    command = [MINGW, "-print-libgcc-file-name"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return (f"-L{Path(answer.strip()).parent}",)


TARGETS = (
    Target("Linux, x86-64", "linux", "x86_64", "gcc"),
    Target("Linux, x86-64", "linux", "x86_64", "clang"),
    Target("Linux, aarch64", "linux", "aarch64", "aarch64-linux-gnu-gcc", runner=QEMU),
    Target(
        "Linux, aarch64", "linux", "aarch64", "clang", ("--target=aarch64-linux-gnu",), (ARM,), QEMU
    ),
    Target("Windows, x86-64", "win32", "x86_64", MINGW, runner=(WINE,)),
    Target(
        "Windows, x86-64", "win32", "x86_64", "clang",
        ("--target=x86_64-w64-mingw32", *folder_of_libgcc()), (MINGW,), (WINE,),
    ),
)  # fmt: skip


class FailedError(Exception):
    """A command that failed, with what it printed."""


def call(command: list[str], folder: Path, **environment: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        msg = f"+ {' '.join(command)}\n{done.stdout}\nexit status {done.returncode}"
        raise FailedError(msg)
    return done.stdout


def runs_here(target: Target, level: str) -> bool:
    """Whether something here runs its programs, and this processor has the level's instructions."""
    if target.runner:
        if not shutil.which(target.runner[0]):
            return False
    elif target.system != sys.platform or build.levels(target.machine) != build.levels():
        return False
    emulated = target.machine != platform.machine()
    features = native._features()
    return emulated or all(features.get(name) for name in native.LEVELS[level])


def best_level() -> str:
    """The best level of this processor."""
    features, known = native._features(), [name for name in native.LEVELS if name in build.levels()]
    return next(name for name in known if all(features.get(n) for n in native.LEVELS[name]))


def check(target: Target, level: str, folder: Path, tests: bool) -> str:
    """Compile the library of a level, and run what can be run; a word on how far it got."""
    library = build.library_path(level, folder, target.system)
    flags = (*target.options, *build.levels(target.machine)[level], *WARNINGS)
    call(build.command(target.compiler, library, flags, target.system, target.is_clang), folder)
    driver = folder / f"driver_{level}{'.exe' if target.system == 'win32' else ''}"
    beside = ("-Wl,-rpath,$ORIGIN",) if target.system == "linux" else ("-static",)
    call(
        [target.compiler, *target.options, "-std=gnu11", "-O1", *WARNINGS, f"-I{build.HERE}",
         f"-DDIGEST={build.digest()}u", str(HERE / "driver.c"), str(library), *beside, "-lm",
         "-o", str(driver)],
        folder,
    )  # fmt: skip
    if not runs_here(target, level):
        return "compiled, not run"
    quiet = {"WINEPREFIX": str(folder.parent / "wine"), "WINEDEBUG": "-all"}
    said = call([*target.runner, str(driver)], folder, **quiet).strip().splitlines()[-1]
    if not tests or target.runner:
        return f"driver passed ({said})"
    files = [str(ROOT / "tests" / "accelerators" / name) for name in AGAINST]
    code = ["-c", RUN_TESTS, str(library), *files, "-k", CHOSEN]
    said = call([sys.executable, *code], ROOT, XBP_ACCELERATE=level).strip().splitlines()[-1]
    return f"tests passed ({said})"


def sanitized(compiler: str, kind: str, options: tuple[str, ...], folder: Path) -> str:
    """The driver and the kernels as one program that checks itself."""
    program = folder / f"{compiler}_{kind[:4]}"
    sources = [str(build.HERE / name) for name in build.SOURCES] + [str(HERE / "driver.c")]
    level = best_level()
    kept = [option for option in build.OPTIONS if option not in ("-shared", "-O3")]
    call(
        [compiler, *kept, OPTIMIZED[compiler], "-g", "-pthread", f"-fsanitize={kind}", *options,
         *build.levels()[level], f"-I{build.HERE}", f"-DDIGEST={build.digest()}u", *sources, "-lm",
         "-o", str(program)],
        folder,
    )  # fmt: skip
    return call([str(program)], folder, UBSAN_OPTIONS="print_stacktrace=1").strip().splitlines()[-1]


def times(folder: Path) -> tuple[str, dict[str, float]]:
    """The level, and by compiler the shortest step of LeNet-5: processor time of one thread."""
    level = best_level()
    libraries, found = {}, {}
    for compiler in ("gcc", "clang"):
        libraries[compiler] = folder / f"{compiler}.so"
        flags = build.levels()[level]
        clang = compiler == "clang"
        call(build.command(compiler, libraries[compiler], flags, is_clang=clang), folder)
    for _ in range(ROUNDS):  # in turn, as the machine may be busy
        for compiler, library in libraries.items():
            said = call([sys.executable, "-c", STEPS, str(library)], ROOT, XBP_ACCELERATE=level)
            found[compiler] = min(found.get(compiler, float("inf")), float(said))
    return level, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tests", action="store_true", help="run the tests against the references")
    parser.add_argument("--sanitize", action="store_true", help="run the driver under sanitizers")
    parser.add_argument("--times", action="store_true", help="compare Clang's step with GCC's")
    parser.add_argument("--only", default="", help="targets with this in their name or compiler")
    chosen = parser.parse_args()
    failed = False

    def row(name: str, compiler: str, level: str, result: str) -> None:
        sys.stdout.write(f"{name:17}{compiler:24}{level:19}{result}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as name:
        if chosen.times:
            level, found = times(Path(name))
            ratio = found["clang"] / found["gcc"]
            for compiler, seconds in found.items():
                row("here", compiler, level, f"{1000 * seconds:.2f} ms a step of 128 images")
            sys.stdout.write(f"Clang : GCC {ratio:.2f}, at most {MOST_RATIO} wanted\n")
            return int(ratio > MOST_RATIO)
        if chosen.sanitize:
            for compiler in ("gcc", "clang"):
                is_wanted = shutil.which(compiler) and chosen.only in compiler
                for kind, options in SANITIZERS if is_wanted else ():
                    try:
                        row("here", compiler, kind, sanitized(compiler, kind, options, Path(name)))
                    except FailedError as error:
                        failed = True
                        row("here", compiler, kind, f"FAILED\n{error}")
            return int(failed)
        for number, target in enumerate(TARGETS):
            if chosen.only not in f"{target.name} {target.compiler}":
                continue
            folder = Path(name, str(number))
            folder.mkdir()
            for level in build.levels(target.machine):
                if missing := target.missing():
                    result = f"not tried: no {' and '.join(missing)} here"
                else:
                    try:
                        result = check(target, level, folder, chosen.tests)
                    except FailedError as error:
                        failed, result = True, f"FAILED\n{error}"
                row(target.name, target.compiler, level, result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
