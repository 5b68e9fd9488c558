"""Building, finding and switching off the compiled kernels; threads and processes."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY
from processes import without_foreign_plugins

from xbp import accelerators, nn
from xbp.accelerators.cpu import build, convolution, native, product

AGAINST = [
    str(Path(__file__).with_name(f"test_{name}.py")) for name in ("against_reference", "batch_norm")
]
"""The tests that compare kernels with references."""

BY_LEVEL = [
    str(Path(__file__).with_name(f"test_compiled_{name}.py"))
    for name in ("attention", "embedding", "recurrence", "rows")
]
"""The same, at each level of the instruction set."""

LAYOUTS = "not unaligned and not mirrored and not cropped" + " and not float64" * (not NIGHTLY)
"""The orders in memory, and the type, that are enough for another build of the same sources."""

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


STATUS = "import xbp.accelerators as a; print(a.status()); import numpy; print(len(a.registered()))"


def test_they_can_be_switched_off() -> None:
    assert run(STATUS, XBP_ACCELERATE="0").startswith("switched off")
    code = (
        "import numpy as np, xbp.accelerators as a\n"
        "with a.disabled(): print(a.find('convolve', np.ndarray))\n"
    )
    assert run(code) == "None"


@needs_kernels
@pytest.mark.parametrize("level", list(native.LEVELS))
def test_each_level_that_runs_here_passes_against_the_reference(level: str) -> None:
    if level == native.status():
        pytest.skip("test_against_reference.py runs it in this process")
    if level not in run(STATUS, XBP_ACCELERATE=level):
        pytest.skip(f"{level} is not built, or this processor cannot run it")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *AGAINST]
    command += without_foreign_plugins("hypothesispytest")
    command += ["-k", f"in_threes and {LAYOUTS}"]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XBP_ACCELERATE": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout


@needs_kernels
@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are Linux's")
def test_workspaces_are_large_enough_and_written_before_they_are_read(tmp_path: Path) -> None:
    """Accesses beyond an array end the process, and unwritten entries are nan."""
    library, tests = tmp_path / "guarded.so", Path(__file__).parent
    guarded = [f"-D{name}=guarded_{name}" for name in ("malloc", "aligned_alloc", "free")]
    command = [str(build.compiler()), *build.OPTIONS, *build.POSIX, "-Og"]  # a third of -O1's time
    command += build.levels()[native.status()]
    command += [*guarded, f"-DDIGEST={build.digest()}u", "-o", str(library)]
    command += [str(build.HERE / name) for name in build.SOURCES]
    subprocess.run([*command, str(tests / "guarded.c"), "-lm"], check=True)
    code = (
        "import sys, pytest, pathlib\n"
        "from xbp.accelerators.cpu import native\n"
        "native.library_path = lambda level: pathlib.Path(sys.argv[1])\n"
        "assert native.library() is not None, native.status()\n"
        "options = ['-q', '-p', 'no:cacheprovider', '-W', 'ignore:Module already imported']\n"
        "cut = sys.argv.index('--')\n"
        "sys.exit(pytest.main([*options, *sys.argv[2:cut]])"
        " or pytest.main([*options, *sys.argv[cut + 1 :]]))"
    )
    chosen = [
        *without_foreign_plugins("hypothesispytest"),
        "-k",
        f"in_threes and {LAYOUTS}",
    ]
    chosen += AGAINST
    at_level = f"{native.status()} and {LAYOUTS}"
    chosen += ["--", *without_foreign_plugins("hypothesispytest"), "-k", at_level, *BY_LEVEL]
    result = subprocess.run(
        [sys.executable, "-c", code, str(library), *chosen],
        cwd=tests.parents[1],
        env=os.environ | {"XBP_ACCELERATE": native.status()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout


@needs_kernels
def test_the_number_of_lanes() -> None:
    library = native.library()
    assert library is not None
    for itemsize in (4, 8):  # not from a cache
        assert native.lanes.__wrapped__(itemsize) == library.xbp_lanes(itemsize) > 1


@needs_kernels
def test_a_function_has_types_of_its_own() -> None:
    """Of one object for all threads they would be set while another thread calls it."""
    name, types = "xbp_replay", (ctypes.c_void_p, ctypes.c_int64)
    assert native.function(name, types, ctypes.c_int64).argtypes == types
    assert native.function(name).argtypes is getattr(native.library(), name).argtypes is None
    others = [
        path.name
        for path in build.HERE.glob("*.py")
        if re.search(r"(argtypes|restype)\b.* = ", path.read_text(encoding="utf-8"))
    ]
    assert others == ["native.py"]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_sources_compile_without_a_warning(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    for flags in build.levels().values():
        for source in build.SOURCES:
            options = [option for option in build.OPTIONS if option != "-shared"]
            command = [compiler, *options, *flags, "-fsyntax-only", "-DDIGEST=0u"]
            command += ["-Wall", "-Wextra", str(build.HERE / source)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("system", "machine", "names"), [
    ("linux", "x86_64", ["_kernels_baseline.so", "_kernels_avx2.so", "_kernels_avx512.so"]),
    ("linux", "aarch64", ["_kernels_neon.so"]),
    ("darwin", "arm64", ["_kernels_neon.dylib"]),
    ("win32", "AMD64", ["_kernels_baseline.dll", "_kernels_avx2.dll", "_kernels_avx512.dll"]),
    ("win32", "ARM64", ["_kernels_neon.dll"]),
    ("linux", "riscv64", ["_kernels_baseline.so"]),
])  # fmt: skip
def test_the_libraries_of_each_system(system: str, machine: str, names: list[str]) -> None:
    levels = build.levels(machine)
    assert [build.library_path(level, Path(), system).name for level in levels] == names
    assert set(levels) <= set(native.LEVELS)


def test_the_options_of_each_system_and_compiler() -> None:
    """Windows has no -fPIC and no POSIX threads, and its stack is not aligned for GCC's vectors."""

    def options(system: str, is_clang: bool) -> set[str]:
        return set(build.command("cc", Path("library"), (), system, is_clang))

    for is_clang in (True, False):
        assert {"-fPIC", "-pthread"} <= options("linux", is_clang) & options("darwin", is_clang)
        assert not {"-fPIC", "-pthread"} & options("win32", is_clang)
        assert build.UNALIGNED not in options("linux", is_clang) | options("darwin", is_clang)
    assert build.UNALIGNED in options("win32", False)
    assert build.UNALIGNED not in options("win32", True)


@pytest.mark.parametrize(("answer", "suits"), [
    ("x86_64-w64-mingw32", True), ("x86_64-w64-windows-gnu", True),
    ("x86_64-pc-windows-msvc", False), ("", False),
])  # fmt: skip
def test_a_compiler_on_windows_has_mingws_libraries(
    answer: str, suits: bool, monkeypatch: Any
) -> None:
    said = subprocess.CompletedProcess([], 0, stdout=f"{answer}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    assert build._suits("clang", "win32") == suits
    assert build._suits("clang", "linux")


@needs_compiler
def test_what_is_built_says_from_which_sources(tmp_path: Path, monkeypatch: Any) -> None:
    """Small sources stand for the kernels, which take seconds; `_load` reads the same symbol."""
    (tmp_path / "kernels.c").write_text('#include "kernels.h"\nconst unsigned xbp_digest = DIGEST;')
    (tmp_path / "workers.c").write_text("int workers;")
    (tmp_path / "kernels.h").write_text("int kernels(void);")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "SOURCES", ("kernels.c", "workers.c"))
    monkeypatch.setattr(build, "HEADERS", ("kernels.h",))
    monkeypatch.setattr(build, "levels", lambda: {"baseline": ()})
    (library,) = build.build(tmp_path)
    assert library == build.library_path("baseline", tmp_path)
    monkeypatch.setattr(native, "library_path", lambda level: library)
    assert native._load.__wrapped__()[1] in native.LEVELS
    for name in (*build.SOURCES, *build.HEADERS):
        file = tmp_path / name
        text = file.read_text()
        file.write_text(text + "\n")
        loaded, problem = native._load.__wrapped__()
        assert loaded is None and "other sources" in problem, name
        file.write_text(text)
    assert native._load.__wrapped__()[0] is not None


@needs_kernels
def test_the_kernels_say_from_which_sources() -> None:
    library = native.library()
    assert build.digest() == ctypes.c_uint.in_dll(library, "xbp_digest").value  # type: ignore[arg-type]


def test_without_a_compiler_nothing_is_built(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert build.build(tmp_path) == [] and not list(tmp_path.iterdir())


@needs_compiler
def test_a_compiler_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(build, "OPTIONS", ("--no-such-option",))
    assert build.build(tmp_path) == [] and not list(tmp_path.iterdir())
    assert "no-such-option" in capsys.readouterr().err


def test_a_library_that_cannot_be_loaded_is_not_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"this is no library")
    monkeypatch.setattr(native, "library_path", lambda level: broken)
    loaded, problem = native._load.__wrapped__()
    assert loaded is None and "cannot be loaded" in problem


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("XBP_NUM_THREADS", "3", 3), ("OMP_NUM_THREADS", "2", 2), ("XBP_NUM_THREADS", "1000", 64),
])  # fmt: skip
def test_threads_are_chosen_by_the_environment(name: str, value: str, expected: int) -> None:
    code = "from xbp.accelerators.cpu import native; print(native.threads())"
    quiet = {"XBP_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    assert run(code, **(quiet | {name: value})) == str(expected)


def case(n: int = 40) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2, 9, 9)).astype(np.float32)
    return x, rng.normal(size=(3, 2, 3, 3)).astype(np.float32), np.zeros(3, np.float32)


@needs_kernels
def test_threads_change_no_bit_but_in_sums_over_the_batch(monkeypatch: Any) -> None:
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        y, backward = convolution.convolve(*case(), padding=(1, 1))
        results.append((y, *backward(np.cos(y))))
    for y, dx, dw, db in results[1:]:
        assert np.array_equal(y, results[0][0]) and np.array_equal(dx, results[0][1])
        # 3,240 terms of order 1, in other orders
        np.testing.assert_allclose(dw, results[0][2], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(db, results[0][3], rtol=1e-4, atol=1e-3)


@needs_kernels
def test_many_python_threads_at_once(monkeypatch: Any) -> None:
    """The workers serve one call at a time; others compute in their own thread, bit for bit."""
    monkeypatch.setattr(native, "threads", lambda: 2)

    def work(_: int) -> tuple[bytes, ...]:
        y, backward = convolution.convolve(*case(), padding=(1, 1))
        return tuple(array.tobytes() for array in (y, *backward(np.cos(y))))

    with ThreadPoolExecutor(8) as executor:
        assert len(set(executor.map(work, range(64)))) == 1


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_pool_of_its_own() -> None:
    code = (
        "import os, warnings, numpy as np\n"
        "from xbp import nn\n"
        "warnings.simplefilter('ignore')  # newer Pythons say that fork and threads are dangerous\n"
        "layer, x = nn.Conv2d(1, 2, 3, rng=0), np.ones((64, 1, 9, 9), np.float32)\n"
        "before = layer(x)\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if np.array_equal(layer(x), before) else 1)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(status, np.array_equal(layer(x), before))"
    )
    assert run(code, XBP_NUM_THREADS="2") == "0 True"


@needs_kernels
def test_memory_of_a_call_lives_as_long_as_its_backward() -> None:
    y, backward = convolution.convolve(*case(), relu=True, pool=(2, 2))
    expected = [array.copy() for array in backward(np.ones_like(y))]
    for _ in range(20):  # other calls, which reuse freed memory
        convolution.convolve(*case(), relu=True, pool=(2, 2))
    for array, again in zip(expected, backward(np.ones_like(y)), strict=True):
        assert np.array_equal(array, again)


@needs_kernels
def test_large_results_use_memory_again_that_nobody_holds(monkeypatch: Any) -> None:
    monkeypatch.setattr(product, "LEAST_KEPT", 0)
    product._kept.clear()
    shape, dtype = (3, 5), np.dtype("float32")
    first = product.memory(shape, dtype)
    place = first.ctypes.data
    view = first.T[1:]
    del first
    assert product.memory(shape, dtype).ctypes.data != place  # a view keeps it alive
    del view
    held = [product.memory(shape, dtype) for _ in range(6)]
    places = [array.ctypes.data for array in held]
    assert place in places and len(set(places)) == 6
    assert product.memory((5, 3), dtype).shape == (5, 3)
    assert product.memory(shape, np.dtype("float64")).dtype == "float64"


@needs_kernels
def test_a_subclass_is_not_fused() -> None:
    class Doubled(nn.ReLU):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x, training=training, rng=rng)
            return 2 * y, lambda dy: 2 * backward(dy)

    x = case()[0]
    conv = nn.Conv2d(2, 3, 3, rng=0)
    plain = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))
    assert np.array_equal(nn.Sequential(conv, Doubled(), nn.MaxPool2d(2))(x), 2 * plain(x))


def test_registered_names_are_primitives() -> None:
    from xbp import primitives

    for accelerator in accelerators.registered():
        primitive = getattr(primitives, accelerator.name)
        assert callable(primitive.reference)
