"""The pytest plugin: the backends of a test, its messages, and its effect on other plugins.

Only tests on numpy run within this process: pytester forgets the modules that such a run imports,
and a second copy of torch or array_api_strict would be another library.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import run_pytest, search_path, without_foreign_plugins

import pytest_xbp
from xbp.backend import LIBRARIES

NO_CUPY = "import sys; sys.modules['array_api_compat.cupy'] = None"  # importing it fails
NAMES = ", ".join(map(repr, LIBRARIES))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run a file of tests with some arguments, without CuPy."""
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    monkeypatch.delenv("XBP_BACKEND", raising=False)

    def run_file(source: str, *arguments: str, ini: str = "") -> pytest.RunResult:
        pytester.makepyfile(source)
        pytester.makeini(f"[pytest]\n{ini}")
        usual = ("-p", "pytest_xbp", "--strict-markers", "--strict-config", "-Werror", "-rA")
        return pytester.runpytest_inprocess(*usual, *without_foreign_plugins(), *arguments)

    return run_file


# --- fixtures ------------------------------------------------------------------------------------

USES = """
import pytest
import xbp
from xbp.backend import backend_of

@pytest.fixture
def weights(backend):
    return xbp.nn.Linear(2, 3).weight.data

def test_both(weights, xp, backend):
    assert isinstance(backend, xbp.Backend)
    assert xbp.get_backend() is backend
    assert backend_of(weights) == backend_of(xbp.asarray([1.0])) == backend
    assert xp is backend.xp

def test_xp_alone(xp):
    assert xbp.get_backend().xp is xp

def test_neither():
    assert xbp.get_backend().name == "numpy"
"""


def test_a_test_runs_on_each_backend_which_is_current_meanwhile(tmp_path: Path) -> None:
    pytest.importorskip("array_api_strict")
    (tmp_path / "test_it.py").write_text(USES)
    (tmp_path / "conftest.py").write_text(NO_CUPY)
    done = run_pytest(tmp_path, "-v")
    assert done.returncode == 0, done.stdout
    for name, fate in (("numpy", "PASSED"), ("array_api_strict", "PASSED"), ("cupy", "SKIPPED")):
        assert f"test_it.py::test_both[{name}] {fate}" in done.stdout
        assert f"test_it.py::test_xp_alone[{name}] {fate}" in done.stdout
    assert "test_it.py::test_neither PASSED" in done.stdout
    strict, cupy, numpy = done.stdout.partition(" xbp backends ")[2].splitlines()[1:4]
    assert strict == "array_api_strict: 2 ran"
    assert cupy.startswith("cupy: 0 ran, 2 skipped (the 'cupy' backend is not installed (")
    assert numpy == "numpy: 2 ran"
    assert "5 passed, 2 skipped" in done.stdout


def test_the_summary_says_where_nothing_was_compared(run, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = "*numpy alone ran, the reference; pip install array-api-strict *"
    with monkeypatch.context() as patch:  # `undo` would also leave pytester's folder
        patch.setitem(sys.modules, "array_api_strict", None)
        run(USES).stdout.fnmatch_lines([alone])
        run(USES, "--xbp-backends", "numpy").stdout.no_fnmatch_line(alone)
    pytest.importorskip("array_api_strict")
    run(USES, "--xbp-backends", "numpy,array_api_strict").stdout.no_fnmatch_line(alone)


def test_numbers_reach_the_summary_from_workers_of_xdist(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    pytest.importorskip("array_api_strict")
    (tmp_path / "test_it.py").write_text(USES)
    done = run_pytest(
        tmp_path, "-n2", "--xbp-backends", "numpy,array_api_strict", plugins=("xdist",)
    )
    assert done.returncode == 0, done.stdout
    assert "array_api_strict: 2 ran\nnumpy: 2 ran\n" in done.stdout


def test_a_backend_chosen_by_the_test_itself(run) -> None:
    source = """
    import pytest

    @pytest.mark.parametrize("backend", ["numpy", "nunpy", "cupy"], indirect=True)
    def test_it(backend):
        assert backend.name == "numpy"
    """
    result = run(source)
    result.assert_outcomes(passed=1, skipped=1, errors=1)
    result.stdout.fnmatch_lines([f"E *BackendError: there is no backend 'nunpy'; *{NAMES}"])


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "ini", "expected"),
    [
        ([], "", pytest_xbp.DEFAULT),
        (["--xbp-backends", "numpy,torch"], "", ["numpy", "torch"]),
        (["--xbp-backends=torch", "--xbp-backends", "numpy, torch"], "", ["torch", "numpy"]),
        (["--xbp-require=torch"], "", [*pytest_xbp.DEFAULT, "torch"]),
        (["--xbp-backends=numpy", "--xbp-require=torch,numpy"], "", ["numpy", "torch"]),
        ([], "xbp_backends = numpy torch", ["numpy", "torch"]),
        ([], "xbp_backends = torch, numpy\nxbp_require = cupy", ["torch", "numpy", "cupy"]),
        (["--xbp-backends=numpy"], "xbp_backends = torch\nxbp_require = cupy", ["numpy", "cupy"]),
    ],
)
def test_the_backends_of_a_run(run, arguments: list[str], ini: str, expected: list[str]) -> None:
    result = run("def test_it(xp): pass", "--collect-only", "-q", *arguments, ini=ini)
    found = [line.partition("[")[2].rstrip("]") for line in result.outlines if "::" in line]
    assert found == list(expected)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--xbp-backends=nunpy", f"there is no backend 'nunpy'; choose one of {NAMES}"),
        ("--xbp-backends=numpy,Torch", f"there is no backend 'Torch'; choose one of {NAMES}"),
        ("--xbp-backends=,", "it names no backend"),
        ("--xbp-require=gpu", f"there is no backend 'gpu'; choose one of {NAMES}"),
        ("--xbp-require=", "it names no backend"),
    ],
)
def test_a_wrong_option_is_one_sentence(run, option: str, problem: str) -> None:
    result = run("def test_it(): pass", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    name = option.partition("=")[0]
    ini = name[2:].replace("-", "_")
    said = [line for line in result.errlines if line]
    assert said == [f"ERROR: {name} ({ini} in the configuration file): {problem}"]


@pytest.mark.parametrize("ini", ["", "xbp_require = cupy"])
def test_a_required_backend_that_is_not_here_is_an_error(run, ini: str) -> None:
    options = ["--xbp-backends=numpy", *([] if ini else ["--xbp-require=cupy"])]
    result = run("def test_it(backend): pass", *options, ini=ini)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["--xbp-require: the 'cupy' backend is not installed (*", "cupy: 0 ran, 1 failed before*"]
    )


# --- markers -------------------------------------------------------------------------------------

MARKED = """
import pytest

here, there = pytest.mark.skip_backends("numpy", reason="why not"), pytest.mark.skip_backends(
    "torch", reason="never shown")

@here
def test_skipped(backend):
    1 / 0

@there
@pytest.mark.xfail_backends("torch", "cupy", reason="never shown")
def test_not_here(xp):
    pass

@pytest.mark.parametrize("number", [pytest.param(1, marks=here), 2])
def test_skipped_once(number, xp):
    assert number == 2

@here
class TestClass:
    def test_skipped_by_its_class(self, backend):
        1 / 0

    def test_of_no_backend(self):
        pass

@pytest.mark.xfail_backends("numpy", reason="not yet", raises=ZeroDivisionError)
def test_expected(backend):
    1 / 0

@pytest.mark.xfail_backends("numpy", reason="not yet", raises=ZeroDivisionError)
def test_unexpected(backend):
    assert False

@pytest.mark.xfail_backends("numpy", reason="not yet", strict=True)
def test_passes_after_all(backend):
    pass

@pytest.mark.xfail_backends("numpy", reason="crashes", run=False)
def test_not_tried(backend):
    1 / 0

@pytest.fixture
def model(backend):
    raise NotImplementedError

@pytest.mark.xfail_backends("numpy", reason="no model")
def test_expected_in_its_fixture(model):
    pass
"""


def test_marked_tests_are_skipped_or_expected_to_fail(run) -> None:
    result = run(MARKED, "--xbp-backends=numpy")
    result.assert_outcomes(passed=3, skipped=3, xfailed=3, failed=2)
    text = result.stdout.str().replace("test_marked_tests_are_skipped_or_expected_to_fail.py", "f")
    for line in (
        "numpy: 5 ran, 3 skipped (why not), 1 skipped ([NOTRUN] crashes), 1 skipped (no model)",
        "PASSED f::test_not_here[numpy]",
        "PASSED f::test_skipped_once[numpy-2]",
        "PASSED f::TestClass::test_of_no_backend",
        "XFAIL f::test_expected[numpy] - not yet",
        "XFAIL at setup of f::test_expected_in_its_fixture[numpy] - no model",
        "FAILED f::test_unexpected[numpy]",
        "[XPASS(strict)] not yet",
    ):
        assert f"\n{line}" in text


@pytest.mark.parametrize("kind", ["skip_backends", "xfail_backends"])
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('"nunpy", reason="r"', f"there is no backend 'nunpy'; choose one of {NAMES}"),
        ('["numpy"], reason="r"', "there is no backend ['numpy']; choose one of"),
        ('"numpy"', 'it needs names and a reason: {kind}("cupy", reason="…")'),
        ('"numpy", reason=" "', "it needs names and a reason"),
        ('reason="r"', "it needs names and a reason"),
        ('"numpy", reason="r", condition=True', "there is no keyword 'condition'"),
    ],
)
def test_a_wrong_marker_is_one_sentence(run, kind: str, arguments: str, problem: str) -> None:
    source = f"""
    import pytest

    @pytest.mark.{kind}({arguments})
    def test_it(backend):
        pass
    """
    result = run(source, "--xbp-backends=numpy")
    result.assert_outcomes(errors=1)
    (said,) = [line for line in result.outlines if line.startswith(f"{kind} of ")]
    assert said.partition("::")[2].startswith(f"test_it[numpy]: {problem.format(kind=kind)}")


def test_a_marker_where_no_backend_is_used_is_an_error(run) -> None:
    source = """
    import pytest

    @pytest.mark.skip_backends("cupy", reason="r")
    def test_it():
        pass
    """
    result = run(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["skip_backends of *::test_it: the test uses neither backend*"])


def test_the_markers_and_options_are_listed(pytester: pytest.Pytester) -> None:
    listed = pytester.runpytest_inprocess("-p", "pytest_xbp", "--markers").stdout
    listed.fnmatch_lines(["@pytest.mark.skip_backends(?names, reason): skip the test *"])
    helped = pytester.runpytest_inprocess("-p", "pytest_xbp", "--help").stdout
    helped.fnmatch_lines(
        ["*--xbp-backends*NAMES*", "*--xbp-require*NAMES*", "*xbp_backends (args)*"]
    )


# --- other people's tests ------------------------------------------------------------------------

OTHERS = """
import sys
import pytest

@pytest.fixture(params=[object()], ids=["own"])
def backend(request):
    return request.param

def test_its_own_backend(backend):
    assert type(backend) is object

@pytest.mark.parametrize("xp", [1, 2])
def test_its_own_parameter(xp):
    assert xp in (1, 2)

def test_nothing_was_imported():
    assert sys.modules.keys().isdisjoint({"numpy", "array_api_compat", "xbp", "cupy", "torch"})
    assert "pytest_xbp" in sys.modules
"""


@pytest.mark.parametrize("arguments", [[], ["-p", "pytest_xbp"]], ids=["found", "named, too"])
def test_a_project_that_does_not_use_it_does_not_notice(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "test_others.py").write_text(OTHERS)
    done = run_pytest(tmp_path, "-Werror", "--strict-markers", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "xbp" not in done.stdout.partition("collected")[2]


LOUD = """
import warnings
def pytest_runtest_setup(item):
    warnings.warn("two of us are here")
"""


def test_what_other_plugins_warn_of_is_not_under_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "others" / "loud-1.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (site / "entry_points.txt").write_text("[pytest11]\nloud = loud\n")
    (site.parent / "loud.py").write_text(LOUD)
    monkeypatch.syspath_prepend(str(site.parent))
    monkeypatch.setenv("PYTHONPATH", search_path(site.parent))
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    assert run_pytest(tmp_path, "-Werror").returncode == 0
    assert "two of us" in run_pytest(tmp_path, "-Werror", plugins=("loud",)).stdout


def test_the_plugin_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(backend): pass")
    done = run_pytest(tmp_path, "-p", "no:pytest_xbp")
    assert "fixture 'backend' not found" in done.stdout


def test_the_default_backends_exist() -> None:
    assert set(pytest_xbp.DEFAULT) <= LIBRARIES.keys()
