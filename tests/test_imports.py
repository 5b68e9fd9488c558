"""Imports: none unasked for, none from a room above, no circle."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import architecture
import pytest

import xbp

PACKAGE = Path(xbp.__file__).parent
ROOMS = architecture.ROOMS
UNASKED = (
    "array_api_strict",
    "cupy",
    "hypothesis",
    "jax",
    "matplotlib",
    "mpi4py",
    "ndonnx",
    "onnx",
    "onnxruntime",
    "pooch",
    "pytest",
    "requests",
    "rich",
    "scipy",
    "sklearn",
    "torch",
    "typer",
)
LIBRARIES = {"array_api_compat", "array_api_strict", "cupy", "jax", "numpy", "torch"}
ALIASES = {"np", "cp", "jnp"}
WRITTEN_ONCE = sorted(
    path
    for room in ("nn", "optim", "models")
    for path in (PACKAGE / room).rglob("*.py")
    if path.is_file()
)


# --- import xbp ----------------------------------------------------------------------------------

TRAIN = """
import numpy as np
model = xbp.nn.Sequential(xbp.nn.Linear(2, 3, rng=0), xbp.nn.Dropout(), xbp.nn.Linear(3, 2, rng=1))
optimizer = xbp.optim.Adam(model.parameters())
logits, backward = model.forward(np.ones((4, 2), np.float32), training=True, rng=0)
backward(xbp.nn.CrossEntropyLoss()(logits, np.array([0, 1, 0, 1]))[1])
optimizer.step()
"""


HELP = """
import sys, xbp.cli
sys.argv = ["xbp", "--help"]
try:
    xbp.cli.main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize("then", ["", TRAIN], ids=["import xbp", "a step on numpy"])
def test_nothing_is_imported_that_was_not_asked_for(then: str) -> None:
    loaded = {root(module) for module in loaded_by(then)}
    assert loaded.isdisjoint(UNASKED), f"imported unasked: {loaded & set(UNASKED)}"


def test_help_on_the_command_line_does_without_the_catalogue() -> None:
    """Typer and rich write it; modules for one command are imported by that command."""
    modules = loaded_by(HELP, whole=False)
    ours = {module for module in modules if root(module) == "xbp"}
    first = {"xbp", "xbp._version", "xbp.cli", "xbp.errors", "xbp.launchers", "xbp.registry"}
    assert ours == first
    assert {root(module) for module in modules} & {*UNASKED, *LIBRARIES} <= {"rich", "typer"}
    frames = modules & {"typer.rich_utils"}  # takes as long to import as all others together
    assert frames <= loaded_by("import typer", whole=False), "older versions of typer need them"


def test_import_xbp_alone_waits_for_nothing() -> None:
    modules = loaded_by("", whole=False)
    ours = {module for module in modules if root(module) == "xbp"}
    assert ours == {"xbp", "xbp._version", "xbp.registry"}
    assert "numpy" not in modules


@pytest.mark.parametrize("name", sorted({*xbp.__all__, *xbp._ROOMS} - {"__version__"}))
def test_a_public_name_is_imported_when_it_is_first_asked_for(name: str) -> None:
    found = xbp.__getattr__(name)  # type: ignore[attr-defined]
    assert found is getattr(xbp, name) is vars(xbp)[name]
    assert name in dir(xbp)


def test_type_checkers_are_told_of_the_same_names() -> None:
    source = ast.parse(Path(xbp.__file__).read_text(encoding="utf-8"))
    told = next(node for node in source.body if isinstance(node, ast.If))
    names = {alias.name for node in told.body for alias in node.names}  # type: ignore[attr-defined]
    assert names == set(xbp.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="module 'xbp' has no attribute 'nobody'"):
        xbp.nobody  # type: ignore[attr-defined]  # noqa: B018


def loaded_by(code: str, *, whole: bool = True) -> set[str]:
    """The modules that `code`, after ``import xbp``, loads in a process of its own.

    By default all public names have been asked for before it.
    """
    # What the interpreter loads by itself (.pth files of some environments) is not xbp's doing.
    code = (
        "import sys; before = set(sys.modules); import xbp\n"
        + ("from xbp import *\n" if whole else "")
        + code
        + "\nprint('loaded', *set(sys.modules) - before)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "XBP_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.rpartition("loaded ")[2].split())
    assert "xbp" in modules
    return modules


# --- written once --------------------------------------------------------------------------------


def offences(source: str) -> Iterator[str]:
    """Each place of `source` that imports an array library, or names one in a string.

    A string that stands alone as a statement, as a docstring does, may say what it likes.
    """
    tree = ast.parse(source)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                wrong = {root(alias.name) for alias in names} & LIBRARIES
            case ast.ImportFrom(module=module, names=names, level=level):
                modules = {root(module or "")} if level == 0 else set()
                # `from xbp.random import np` would be an import of numpy too.
                wrong = modules & LIBRARIES | {a.name for a in names} & (LIBRARIES | ALIASES)
            case ast.Constant(value=str(text)) if id(node) not in prose:
                wrong = {root(text.strip().lower())} & LIBRARIES
            case ast.Attribute(attr=name):  # xbp.backend.np
                wrong = {name} & (LIBRARIES | ALIASES)
            case _:
                continue
        for name in sorted(wrong):
            yield f"line {node.lineno}: {name}"


def root(module: str) -> str:
    """ "numpy" for "numpy.linalg"."""
    return module.partition(".")[0]


@pytest.mark.parametrize("path", WRITTEN_ONCE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_layer_and_no_optimizer_knows_an_array_library(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


def test_on_the_ground_floor_libraries_are_named_in_their_table_graphs_and_slots_alone() -> None:
    """numpy is allowed everywhere for the host, and array_api_compat for namespaces."""
    named = {
        (path.stem, found.rpartition(" ")[2])
        for path in (PACKAGE / "backend").glob("[!_]*.py")
        for found in offences(path.read_text(encoding="utf-8"))
    }
    others = {(name, library) for name, library in named if library not in ("np", "numpy")}
    others -= {("arrays", "array_api_compat")}
    assert {name for name, _ in others} == {"libraries", "graphs", "slots"}


def test_the_layers_and_optimizers_are_among_the_files_checked() -> None:
    names = {str(path.relative_to(PACKAGE)) for path in WRITTEN_ONCE}
    assert {"nn/__init__.py", "nn/layer.py", "nn/conv.py", "optim/adam.py"} <= names


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import numpy", ["line 1: numpy"]),
        ("import numpy as anything", ["line 1: numpy"]),
        ("import os, cupy.cuda", ["line 1: cupy"]),
        ("from torch.nn import functional", ["line 1: torch"]),
        ("from numpy import sum", ["line 1: numpy"]),
        ("from xbp.random import np", ["line 1: np"]),
        ("from xbp import backend\nbackend.np.ones(3)", ["line 2: np"]),
        ("def forward(x):\n    import jax.numpy as xp", ["line 2: jax"]),
        ("class A:\n    def f(self):\n        from array_api_compat import size", None),
        ("if x:\n    import array_api_strict", ["line 2: array_api_strict"]),
        ("if type(x).__module__ == 'numpy': pass", ["line 1: numpy"]),
        ("name = 'cupy.ndarray'", ["line 1: cupy"]),
        ("module = __import__('torch')", ["line 1: torch"]),
        ("def f():\n    '''About.'''\n    return f'{1}' 'numpy'", None),
        ("def f(x: 'numpy.ndarray'): pass", ["line 1: numpy"]),
        ("match name:\n    case 'cupy': pass", ["line 2: cupy"]),
    ],
)
def test_the_check_finds_what_it_is_there_to_find(source: str, found: list[str] | None) -> None:
    reported = list(offences(source))
    assert reported if found is None else reported == found


@pytest.mark.parametrize(
    "source",
    [
        "'''numpy'''",
        "def f():\n    'cupy'\n    return 1",
        "class A:\n    x = 1\n    'numpy'",
        "msg = 'a numpy array is expected'",
        "from xbp.random import Generator",
        "from . import conv",
        "xp = self.check_input(x)\nxp.sum(x)",
        "# import numpy",
    ],
)
def test_the_check_lets_prose_and_the_namespace_pass(source: str) -> None:
    assert list(offences(source)) == []


# --- the rooms -----------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., list[architecture.Arrow]]:
    """The arrows of a package made of some files."""

    def build(**sources: str) -> list[architecture.Arrow]:
        for name, source in sources.items():
            path = tmp_path / "xbp" / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        (tmp_path / "xbp" / "__init__.py").touch()
        return architecture.arrows(architecture.files(tmp_path))

    return build


def test_every_file_is_in_a_room_of_the_table() -> None:
    strange = {name for name in architecture.files() if architecture.room(name) not in ROOMS}
    assert not strange, "give them a place in tests/architecture.py: ROOMS"


def test_rooms_import_from_those_below_and_files_in_no_circle() -> None:
    found = architecture.against_the_plan(architecture.arrows(architecture.files()))
    assert found == (set(), set()), "python tests/architecture.py shows where"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("from xbp.nn.layer import Layer", ""),
        ("import xbp.nn.layer", ""),
        ("from xbp.nn import layer", ""),
        ("from .nn import layer", ""),
        ("try:\n    from xbp.nn.layer import x\nexcept ImportError: pass", ""),
        ("def f():\n    import xbp.nn.layer", "lazy"),
        ("def f():\n    import_module('xbp.nn.layer')", None),
        ("def f():\n    importlib.import_module('xbp.nn.layer')", "lazy"),
        ("if TYPE_CHECKING:\n    from xbp.nn.layer import Layer", "typing"),
        ("if typing.TYPE_CHECKING:\n    from xbp.nn.layer import Layer", "typing"),
        ("if not TYPE_CHECKING:\n    from xbp.nn.layer import Layer", "typing"),
        ("'from xbp.nn.layer import Layer'", None),
        ("import numpy", None),
    ],
)
def test_an_arrow_upwards_is_found(
    house: Callable[..., list[architecture.Arrow]], source: str, kind: str | None
) -> None:
    found = house(backend=source, nn__layer="x = 1")
    expected = [] if kind is None else [architecture.Arrow("xbp.backend", "xbp.nn.layer", kind)]
    assert architecture.upwards(found) == expected


def test_a_circle_is_found_through_all_kinds_of_imports(
    house: Callable[..., list[architecture.Arrow]],
) -> None:
    found = house(
        nn__a="from xbp.nn.b import x",
        nn__b="def f():\n    from xbp.nn.c import x",
        nn__c="if TYPE_CHECKING:\n    from xbp.nn.a import x",
        nn__d="from xbp.nn.a import x",
        optim="from xbp.nn import d",
    )
    up, circles = architecture.against_the_plan(found)
    assert (up, circles) == (set(), {("xbp.nn.a", "xbp.nn.b", "xbp.nn.c")})
    assert architecture.circles(a for a in found if a.kind != "typing") == []


def test_the_picture_has_every_room_and_says_what_is_wrong(
    house: Callable[..., list[architecture.Arrow]],
) -> None:
    lines = "\n".join(architecture.picture(house(errors="import xbp.cli.report", cli__report="")))
    assert all(room in lines for room in ROOMS)
    assert "arrows upwards: 1;" in lines and "upwards: xbp.errors -> xbp.cli.report" in lines
