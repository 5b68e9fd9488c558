"""xbp's pytest plugin: a test that asks for `backend` or `xp` runs once on every backend.

pytest loads this module wherever xbp is installed, also for projects that make no use of it. So it
stands beside the package, whose import would import numpy, and imports xbp only when a test or an
option asks for a backend.

fixtures
    ``backend``, an `xbp.Backend`: where arrays and layers are born during the test;
    ``xp``, its Array API namespace.
options
    ``--xbp-backends numpy,torch``: run on these; one that is not here is skipped, with the reason;
    ``--xbp-require cupy``: run on these, too; one that is not here is an error.
    ``xbp_backends`` and ``xbp_require`` in the configuration file mean the same, where the command
    line says nothing.
markers
    ``skip_backends("cupy", reason="…")``;
    ``xfail_backends("torch", reason="…")``, which takes the other options of ``xfail``, too.

Without options a test runs on numpy, array_api_strict and cupy. The summary at the end says on
which backends tests really ran, and why not on others. The fixtures stay the same for all examples
of a Hypothesis test, which it wants to hear is meant:
``@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xbp.backend import Backend, Namespace

DEFAULT = ("numpy", "array_api_strict", "cupy")

ORDINARY = {"skip_backends": pytest.mark.skip, "xfail_backends": pytest.mark.xfail}
"""What each marker becomes on the backends it names."""

KEYWORDS = {"skip_backends": {"reason"}, "xfail_backends": {"reason", "raises", "run", "strict"}}

ALONE = "numpy alone ran, the reference; pip install array-api-strict compares it with another"

BACKEND = pytest.StashKey[str]()
"""On an item: the name of its backend. On its reports it is the attribute `xbp_backend`."""


# --- options -------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xbp", "xbp: tests on several array libraries")
    for option, what in (
        ("backends", f"run tests on these backends (default: {','.join(DEFAULT)})"),
        ("require", "run tests on these backends too, and fail where one is not here"),
    ):
        group.addoption(f"--xbp-{option}", action="append", metavar="NAMES", help=what)
        parser.addini(f"xbp_{option}", what, type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    for marker, options in (("skip", ""), ("xfail", ", raises=…, run=…, strict=…")):
        what = f"{marker} the test on these backends of xbp, for a reason that is required"
        config.addinivalue_line("markers", f"{marker}_backends(*names, reason{options}): {what}")
    required = _chosen(config, "require")
    names = dict.fromkeys([*(_chosen(config, "backends") or DEFAULT), *required])
    config.pluginmanager.register(_fixtures(names, required), "xbp-fixtures")


def _chosen(config: pytest.Config, option: str) -> list[str]:
    """The names given on the command line, else in the configuration file, else none."""
    given: Any = config.getoption(f"xbp_{option}") or config.getini(f"xbp_{option}")
    names = [name for item in given for name in re.split(r"[,\s]+", item) if name]
    problem = _unknown(names) if names else "it names no backend" if given else None
    if problem:
        msg = f"--xbp-{option} (xbp_{option} in the configuration file): {problem}"
        raise pytest.UsageError(msg)
    return names


def _unknown(names: Iterable[Any]) -> str | None:
    """What is wrong with the first name that is no backend of xbp."""
    from xbp.backend import LIBRARIES

    known = list(LIBRARIES)
    wrong = [repr(name) for name in names if name not in known]
    return f"there is no backend {wrong[0]}; choose one of {str(known)[1:-1]}" if wrong else None


# --- fixtures ------------------------------------------------------------------------------------


def _fixtures(names: Iterable[str], required: list[str]) -> object:
    """A plugin of two fixtures; not in the module, since their parameters are known only now."""

    class Fixtures:
        @pytest.fixture(params=names)
        def backend(self, request: pytest.FixtureRequest) -> Iterator[Backend]:
            """An `xbp.Backend`; during the test, arrays and layers are born there."""
            from xbp.backend import use_backend, why_unavailable

            name = request.node.stash[BACKEND] = request.param
            reason = why_unavailable(name)
            if reason is not None and name in required:
                pytest.fail(f"--xbp-require: {reason}", pytrace=False)
            if reason is not None and _unknown([name]) is None:
                pytest.skip(reason)
            with use_backend(name) as current:
                yield current

        @pytest.fixture
        def xp(self, backend: Backend) -> Namespace:
            """The Array API namespace of `backend`."""
            return backend.xp

    return Fixtures()


# --- markers -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Give the test the ordinary markers of its backend, before pytest looks at those."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    for kind, ordinary in ORDINARY.items():
        for mark in item.iter_markers(kind):
            problem = _problem(mark)
            if problem is None and "backend" not in parameters and mark in item.own_markers:
                problem = "the test uses neither backend nor xp"
            if problem:
                pytest.fail(f"{kind} of {item.nodeid}: {problem}", pytrace=False)
            if parameters.get("backend") in mark.args:
                item.stash[BACKEND] = parameters["backend"]
                item.add_marker(ordinary(**mark.kwargs))
    yield


def _problem(mark: pytest.Mark) -> str | None:
    if unknown := set(mark.kwargs) - KEYWORDS[mark.name]:
        return f"there is no keyword {min(unknown)!r}"
    reason = mark.kwargs.get("reason")
    if not mark.args or not isinstance(reason, str) or not reason.strip():
        return f'it needs names and a reason: {mark.name}("cupy", reason="…")'
    return _unknown(mark.args)


# --- the summary ---------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """An attribute of the report, for that travels to the summary from workers of xdist, too."""
    report = yield
    if BACKEND in item.stash:
        report.xbp_backend = item.stash[BACKEND]  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    fates: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "xbp_backend"):
                fates[report.xbp_backend][_fate(report)] += 1
    if fates:
        terminalreporter.section("xbp backends")
    for name, counts in sorted(fates.items()):
        del counts[""]
        counts["ran"] += 0  # says "0 ran" where none did
        told = [
            f"{counts['ran']} ran",
            *(f"{n} {fate}" for fate, n in counts.items() if fate != "ran"),
        ]
        terminalreporter.line(f"{name}: {', '.join(told)}")
    ran = {name for name, counts in fates.items() if counts["ran"]}
    if ran == {"numpy"} != fates.keys():  # else it is meant
        terminalreporter.line(ALONE)


def _fate(report: pytest.TestReport) -> str:
    """What the summary says of a test for this report; nothing for most set-ups and teardowns."""
    expected = getattr(report, "wasxfail", None)
    if report.when == "call" and (expected is not None or not report.skipped):
        return "ran"
    if report.skipped:
        reason = expected
        if isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        return f"skipped ({reason})"
    return "failed before running" if report.failed and report.when == "setup" else ""
