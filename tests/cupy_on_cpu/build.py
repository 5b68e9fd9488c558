"""A virtual environment in which CuPy computes on the CPU.

1. CuPy's wheel, as users install it, with Cython and the headers of CUDA, from the package index.
2. `cupy_backends.cuda.api.runtime`, the one module that includes CUDA's runtime, rebuilt from
   CuPy's sdist to call a shared library.
3. That library, and those of the driver, NVRTC and cuBLAS: thin wrappers of `libcuda.so.1`, which
   is made of the C++ files here. Functions that CuPy links to and they lack return "not
   supported".
4. `thrust.py`, in place of Thrust, which is compiled for GPUs.

Everything is in one folder; parts that exist already are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from cupy_on_cpu import nvrtc

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EMULATION = "../accelerators/emulation/emulation.h"
CUPY, CUDA = "14.2.0", "13.0"
PACKAGES = (
    *(f"cupy-cuda13x=={CUPY}", "cython>=3.2,<3.3"),
    *(f"nvidia-cuda-{name}=={CUDA}.*" for name in ("runtime", "crt", "profiler-api")),  # headers
)
SHELLS = ("libcudart.so.13", "libnvrtc.so.13", "libcublas.so.13", "libcublasLt.so.13")
NOT_SUPPORTED = {"cuda": 801, "cublas": 15}
KERNELS = ("cupy.h", "device.h", "mathematics.h", "nvrtc.py", EMULATION)
"""Sources of the kernels: CuPy recompiles them if one of these has changed."""
SETTINGS = """\
import os; os.environ.setdefault("CUPY_ACCELERATORS", "")
import os; os.environ.setdefault("CUPY_CACHE_DIR", {cache!r})
"""
"""Environment variables: no CUB, which is compiled for GPUs; the folder of the kernel cache."""


def build(folder: Path) -> Path:
    """Build the missing parts in `folder`; returns the environment's Python."""
    python = folder / "venv" / "bin" / "python"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    packages = [*PACKAGES, *(package for package in ours if not package.startswith("xbackprop"))]
    if once(folder / "installed", "\n".join(packages)):
        run(sys.executable, "-m", "venv", folder / "venv")
        run(python, "-m", "pip", "install", "-q", *packages)
        say(folder / "installed", "\n".join(packages))
    site = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    cuda = site / "nvidia" / "cu13"
    if once(folder / "runtime", CUPY):
        compile_runtime(folder, python, cuda / "include")
        say(folder / "runtime", CUPY)
    made_of = digest("*.cpp", "*.h", "build.py", "thrust.py", *KERNELS)
    if once(folder / "libraries", made_of):
        make_libraries(folder, python, site, cuda)
        say(folder / "libraries", made_of)
    return python


def digest(*patterns: str) -> str:
    files = sorted(path for pattern in patterns for path in HERE.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:32]


def compile_runtime(folder: Path, python: Path, headers: Path) -> None:
    """`runtime.o`: CuPy's own text, by Cython, with the constants of its own setup.

    The sdist's metadata are built as for its documentation, which needs no CUDA.
    """
    options = ("--no-deps", "--no-binary", "cupy", "-q", "-d", folder)
    run(python, "-m", "pip", "download", *options, f"cupy=={CUPY}", READTHEDOCS="True")
    with tarfile.open(folder / f"cupy-{CUPY}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    constants = {
        **{"CUPY_CUDA_VERSION": 13000, "CUPY_HIP_VERSION": 0, "CUPY_CYTHON_VERSION": "3.2"},
        **{"CUPY_USE_CUDA_PYTHON": False, "CUPY_CUFFT_STATIC": False},
    }
    program = f"""
from Cython.Build import cythonize
directives = dict(embedsignature=True, c_api_binop_methods=True, binding=False)
directives |= {{"warn.deprecated.IF": False, "freethreading_compatible": True}}
cythonize("cupy_backends/cuda/api/runtime.pyx", language_level=3, quiet=True,
          compiler_directives=directives, compile_time_env={constants})
"""
    sources = folder / f"cupy-{CUPY}"
    run(python, "-W", "ignore", "-c", program, cwd=sources)
    include = output(python, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])")
    text = sources / "cupy_backends" / "cuda" / "api" / "runtime.c"
    where = ("-x", "c++", text, f"-I{headers}", f"-I{include}")
    run(compiler(), "-c", "-O1", "-fPIC", "-w", *where, "-o", folder / "runtime.o")


def make_libraries(folder: Path, python: Path, site: Path, cuda: Path) -> None:
    here, target, kept = sorted(HERE.glob("*.cpp")), cuda / "lib", folder / "compiler"
    target.mkdir(exist_ok=True)
    kept.mkdir(exist_ok=True)
    for name in KERNELS:
        shutil.copy(HERE / name, kept)
    ours, objects = folder / "ours.o", []
    for source in here:
        objects.append(folder / f"{source.stem}_here.o")
        words = {"PYTHON": python, "COMPILER": kept / "nvrtc.py", "DIGEST": digest(*KERNELS)}
        macros = [f'-D{name}="{value}"' for name, value in words.items()]
        warnings = ("-Wall", "-Wextra", "-Werror")
        flags = ("-std=c++17", "-O2", "-g", "-fPIC", *warnings, f"-I{cuda / 'include'}", *macros)
        run(compiler(), "-c", *flags, source, "-o", objects[-1])
    blas = next((site / "cupy_backends" / "cuda" / "libs").glob("cublas.*.so"))
    wanted = names(folder / "runtime.o", "--undefined-only") | names(blas, "-D", "--undefined-only")
    missing = wanted - set().union(*(names(it, "--defined-only") for it in objects))
    text = "".join(
        f"int {name}(void) {{ return {NOT_SUPPORTED[kind]}; }}\n"
        for name in sorted(missing)
        for kind in NOT_SUPPORTED
        if re.match(f"{kind}[A-Z]", name)
    )
    run(compiler(), "-c", "-fPIC", "-x", "c", "-", "-o", ours, text=text)
    machine = target / "libcuda.so.1"
    run(compiler(), "-shared", *objects, ours, "-o", machine, "-Wl,-soname,libcuda.so.1")
    linked = ("-shared", "-Wl,--no-as-needed", f"-L{target}", f"-l:{machine.name}")
    for name in SHELLS:
        options = ("-x", "c", "/dev/null", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN")
        run(compiler(), *options, *linked, "-o", target / name)
    module = next((site / "cupy_backends" / "cuda" / "api").glob("runtime.*.so"))
    run(compiler(), folder / "runtime.o", *linked, f"-Wl,-rpath,{target}", "-o", module)
    options = "import cupy; print(*cupy._core.core.assemble_cupy_compiler_options(()))"
    command = nvrtc.compiler(output(python, "-c", options).split())
    header = ("-x", "c++-header", kept / "cupy.h", "-o", kept / "cupy.h.gch")
    run(*command, *nvrtc.FLAGS, f"-I{kept}", *header)
    for library in (site / "cupy" / "cuda").glob("thrust.*.so"):
        library.unlink()
    shutil.copy(HERE / "thrust.py", site / "cupy" / "cuda")
    (site / "cupy_on_cpu.pth").write_text(SETTINGS.format(cache=str(folder / "kernels")))


# --- small things --------------------------------------------------------------------------------


def once(stamp: Path, what: str) -> bool:
    """Whether this part must still be built."""
    return not stamp.exists() or stamp.read_text() != what


def say(stamp: Path, what: str) -> None:
    stamp.write_text(what)


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def names(file: Path, *options: str) -> set[str]:
    """The functions of CUDA among a file's symbols."""
    symbols = output("nm", *options, file)
    return set(re.findall(r" ((?:cuda|cublas)[A-Z]\w*)(?:@\S+)?$", symbols, re.MULTILINE))


def run(*command: object, text: str | None = None, cwd: Path | None = None, **more: str) -> None:
    words = [str(word) for word in command]
    environment = {**os.environ, **more}
    done = subprocess.run(
        words, input=text, cwd=cwd, env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        msg = f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        raise RuntimeError(msg)


def output(*command: object) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
