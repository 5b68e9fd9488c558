"""A C++ compiler in the place of NVRTC: a folder's `kernels.cu`, to `kernels.so`, with its `log`.

    python nvrtc.py FOLDER OPTION…

The preprocessor keeps the word `__global__`, which marks the kernels; each gets an entry point for
the emulation at the end of the text. The lines of `expressions`, if there are any, name the
kernels: instances of templates. This file is copied with its headers to where it is used.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = (
    *("-O1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w", "-fpermissive"),
    *("-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"),
)
SHARED = re.compile(r"extern\s+__shared__\s+([\w:<> ]+?)\s*(\w+)\s*\[\s*\]\s*;")
"""Dynamic shared memory, one block for all declarations in a kernel."""
WITHIN = r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*"  # parentheses, two deep
BOUNDS = rf"__launch_bounds__\s*\({WITHIN}\)"
KERNEL = re.compile(rf"__global__\s+void\s+(?:{BOUNDS}\s*)?(\w+)\s*\(")


def compiler(options: list[str]) -> list[str]:
    """The command, with the macros and folders among NVRTC's options.

    CUDA's own headers are left out: their host declarations conflict with `device.h`.
    """
    kept = [it for it in options if it.startswith(("-I", "-D")) and "/nvidia/" not in it]
    return [os.environ.get("CXX", "c++"), "-std=c++17", *kept]


def main(folder: Path, options: list[str]) -> int:
    source, command = folder / "kernels.cu", compiler(options)
    with (folder / "log").open("w") as log:
        read = [*command, "-E", "-P", "-x", "c++", source]
        seen = subprocess.run(read, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if seen.returncode:
            return 1
        text = SHARED.sub(r"\1 *\2 = (\1 *)emulation::dynamic;", source.read_text())
        found = {name: name for name in KERNEL.findall(seen.stdout)}
        asked = (folder / "expressions").read_text().splitlines()
        found = {f"expression_{i}": it for i, it in enumerate(asked)} or found
        entries = [f"KERNEL({name}, {kernel})" for name, kernel in found.items()]
        source.write_text("\n".join([text, *entries, ""]))
        first = "cupy.h" if "#include <cupy/" in text else "device.h"
        command += [*FLAGS, f"-I{HERE}", "-include", first, "-x", "c++", str(source)]
        command += ["-shared", "-o", str(folder / "kernels.so")]
        return subprocess.run(command, stderr=log, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
