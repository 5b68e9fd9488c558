"""Build of the kernels: when xbp is installed, or by ``python xbp/accelerators/cpu/build.py``.

One library for each level of the instruction set, so that one wheel serves every processor. This
file imports nothing of xbp.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("kernels.c", "replay.c", "stream.c", "workers.c")
HEADERS = (
    *("compiler.h", "threads.h", "kernels.h", "arrays.h", "fetch.h", "lanes.h", "correlate.h"),
    *("winograd.h", "tiles.h", "winograd_weight.h", "convolution.h"),
    *("gradients.h", "backward_in_tiles.h", "convolution_backward.h", "columns.h"),
    *("positions.h", "positions_weight.h", "positions_backward.h", "pooling.h"),
    *("elementwise.h", "updates.h", "product.h", "affine.h", "blocked.h"),
    *("special.h", "normalization.h", "rows.h", "cross_entropy.h", "dense.h", "recurrence.h"),
    *("attention.h", "embedding.h", "replay.h"),
)
OPTIONS = ("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared")
POSIX = ("-fPIC", "-pthread")
WINDOWS = ("-static", "-Wl,--no-insert-timestamp")  # needs no other library; the same in each build
UNALIGNED = "-Wa,-muse-unaligned-vector-move"
"""For GCC on Windows, whose stack may be aligned less than the vectors on it (GCC's bug 54412)."""
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
LEVELS: dict[
    str, dict[str, tuple[str, ...]]
] = {  # compiler flags; the processors' features are in `native.py`
    "x86_64": {"baseline": (), "avx2": AVX2, "avx512": AVX512},
    "aarch64": {"neon": ()},  # vectors and fused multiply-add, which all these processors have
}
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}


def digest() -> int:
    """A digest of the sources, so that a library of other sources is not loaded."""
    value = 0
    for name in (*SOURCES, *HEADERS):
        value = zlib.crc32((HERE / name).read_bytes(), value)
    return value


def library_path(level: str, folder: Path = HERE, system: str = sys.platform) -> Path:
    """The path of a level's library."""
    return folder / f"_kernels_{level}{SUFFIXES.get(system, '.so')}"


def levels(machine: str = "") -> dict[str, tuple[str, ...]]:
    """The levels for a kind of machine, by default this one, and their compiler flags."""
    import platform

    machine = (machine or platform.machine()).lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return LEVELS.get(machine, {"baseline": ()})


def compiler() -> str | None:
    """The C compiler: $CC, or the first of several usual names on the path."""
    import shutil

    names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    found = (path for name in names if name and (path := shutil.which(name)))
    return next((path for path in found if _suits(path)), None)


def _suits(cc: str, system: str = sys.platform) -> bool:
    """Whether it is GCC or Clang for this system; on Windows, with MinGW's libraries."""
    import subprocess

    if system != "win32":
        return True
    answer = subprocess.run([cc, "-dumpmachine"], capture_output=True, text=True, check=False)
    return any(name in answer.stdout for name in ("mingw", "windows-gnu"))


def command(
    cc: str, target: Path, flags: tuple[str, ...], system: str = sys.platform, is_clang: bool = True
) -> list[str]:
    """The command that compiles a library."""
    windows = WINDOWS if is_clang else (*WINDOWS, UNALIGNED)
    options = (*OPTIONS, *(windows if system == "win32" else POSIX), *flags)
    sources = [str(HERE / name) for name in SOURCES]
    return [cc, *options, f"-DDIGEST={digest()}u", "-o", str(target), *sources, "-lm"]


def is_clang(cc: str) -> bool:
    """Whether a compiler is Clang, whatever its name."""
    import subprocess

    answer = subprocess.run([cc, "--version"], capture_output=True, text=True, check=False)
    return "clang" in answer.stdout.lower()


def build(folder: Path = HERE) -> list[Path]:
    """Compile every level into `folder`; an empty list without a compiler, or if it fails."""
    import subprocess

    cc = compiler()
    if cc is None:
        return []
    clang = is_clang(cc)
    started, made = [], []
    for level, flags in levels().items():  # all at once
        target = library_path(level, folder)
        partial = target.with_suffix(f".{os.getpid()}")  # renamed when complete
        line = command(cc, partial, flags, is_clang=clang)
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        started.append((target, partial, process))
    for target, partial, process in started:
        problem = process.communicate()[1]
        if process.returncode == 0:
            partial.replace(target)
            made.append(target)
        else:
            partial.unlink(missing_ok=True)
            print(problem, file=sys.stderr)  # noqa: T201
    return made


if __name__ == "__main__":
    libraries = [str(path) for path in build()]
    print(*libraries or ["no C compiler was found, or it failed"], sep="\n")  # noqa: T201
    sys.exit(not libraries)
