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
SOURCES = ("kernels.c", "stream.c", "workers.c")
HEADERS = (
    *(
        "kernels.h",
        "arrays.h",
        "lanes.h",
        "correlate.h",
        "winograd.h",
        "convolution.h",
        "pooling.h",
    ),
    *(
        "elementwise.h",
        "updates.h",
        "product.h",
        "affine.h",
        "special.h",
        "normalization.h",
        "rows.h",
        "recurrence.h",
    ),
)
OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
LEVELS = {  # compiler flags; the processors' features are in `native.py`
    "x86_64": {"baseline": (), "avx2": AVX2, "avx512": AVX512},
}


def digest() -> int:
    """A digest of the sources, so that a library of other sources is not loaded."""
    value = 0
    for name in (*SOURCES, *HEADERS):
        value = zlib.crc32((HERE / name).read_bytes(), value)
    return value


def library_path(level: str, folder: Path = HERE) -> Path:
    """The path of a level's library."""
    return folder / f"_kernels_{level}.so"


def levels() -> dict[str, tuple[str, ...]]:
    """The levels for this kind of machine, and their compiler flags."""
    import platform

    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return LEVELS.get(machine, {"baseline": ()})


def compiler() -> str | None:
    """The C compiler: $CC, or the first of several usual names on the path."""
    import shutil

    names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(folder: Path = HERE) -> list[Path]:
    """Compile every level into `folder`; an empty list without a compiler, or if it fails."""
    import subprocess

    cc = compiler()
    if cc is None or sys.platform == "win32":
        return []
    made = []
    for level, flags in levels().items():
        target = library_path(level, folder)
        partial = target.with_suffix(f".{os.getpid()}")  # renamed when complete
        sources = [str(HERE / name) for name in SOURCES]
        command = [cc, *OPTIONS, *flags, f"-DDIGEST={digest()}u", "-o", str(partial), *sources]
        result = subprocess.run([*command, "-lm"], capture_output=True, text=True, check=False)
        if result.returncode == 0:
            partial.replace(target)
            made.append(target)
        else:
            partial.unlink(missing_ok=True)
            print(result.stderr, file=sys.stderr)  # noqa: T201
    return made


if __name__ == "__main__":
    libraries = [str(path) for path in build()]
    print(*libraries or ["no C compiler was found, or it failed"], sep="\n")  # noqa: T201
    sys.exit(not libraries)
