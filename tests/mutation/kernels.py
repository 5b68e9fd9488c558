"""Faults in compiled kernels: in the source's text, recompiled without optimization, and loaded.

==============  ================================================================================
sign            + for - and the reverse
scaled          a factor removed: * for /, or a term doubled
mask            & for |, a condition or comparison reversed
off by one      < for <=, an integer constant 1 larger
swapped         height for width, rows for columns
dropped         a statement removed, an accumulation that overwrites
==============  ================================================================================

Code that cannot change a result has no faults: which of two equal numbers is the smaller, behaviour
without memory, times of waiting; preprocessor directives, except for the bodies of macros. A fault
that does not compile does not count. Crashes, hangs and running out of memory are caught; so are
accesses outside of an array or a workspace, which crash by tests/guards.py and guarded.c.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "xbp" / "accelerators" / "cpu"
NOT_COMPILED = 3

OPERATORS = {
    "sign": {"+": "-", "-": "+", "+=": "-=", "-=": "+="},
    "scaled": {"*": "/", "/": "*"},
    "mask": {"&": "|", "|": "&", "&&": "||", "||": "&&", "==": "!=", "!=": "=="},
    "off by one": {"<": "<=", "<=": "<", ">": ">=", ">=": ">"},
    "dropped": {"+=": "=", "|=": "="},
}
TWINS = [("h", "w"), ("oh", "ow"), ("kh", "kw"), ("rows", "columns"), ("row", "plane")]
TWINS += [(f"{name}_h", f"{name}_w") for name in ("stride", "pad", "pool", "step")]
BLANK = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
MACRO = re.compile(r"#define \w+\([^)]*\)")
STATEMENT = re.compile(r"(?<=[;{}:]|\))\s*((?:\w+\(|\*?[\w.]+(?:\[|->| [-+|&*]?= |\+\+))[^;{}]*;)")
INVISIBLE = re.compile(
    r"failed|return 1;|spin|yield|SPINS|relax|_pause|chunk|detach|MOST_THREADS|sleeping"
)
"""Marks of lines about lack of memory, or about waiting."""

SANITIZE = ("-fsanitize=bounds", "-fsanitize-undefined-trap-on-error", "-fstack-protector-all")
"""An index beyond its array ends the process."""
GUARDED = tuple(f"-D{name}=guarded_{name}" for name in ("malloc", "aligned_alloc", "free"))
"""An index beyond a workspace does so too, and unwritten workspace is nan."""

KEYWORDS = ("return", "for", "if", "while", "switch", "case", "break", "goto", "typedef", "struct")


@dataclass(frozen=True)
class KernelFault:
    """One wrong change in a source file."""

    file: str
    kind: str
    before: str
    after: str
    line: str
    start: int
    end: int

    @property
    def module(self) -> str:
        return self.file

    def __str__(self) -> str:
        return f"{self.file}, {self.kind}: `{self.before}` as `{self.after}` in `{self.line}`"

    def planted(self, text: str) -> str:
        return text[: self.start] + self.after + text[self.end :]


def code_of(text: str) -> str:
    """The text with blanks for comments, strings and directives."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    def directive(match: re.Match[str]) -> str:
        macro = MACRO.match(match.group().lstrip())
        # Macros of sizes compute nothing; macros with statements do.
        if not macro or ";" not in match.group():
            return blank(match)
        body = match.group().replace("\\\n", " \n")
        head = len(body) - len(body.lstrip()) + macro.end()
        return " " * head + body[head:]

    return DIRECTIVE.sub(directive, BLANK.sub(blank, text))


def kernel_faults(file: str, text: str) -> Iterator[KernelFault]:
    code = code_of(text)
    seen: dict[str, int] = {}
    for kind, start, end, after in sorted(_changes(code), key=lambda change: change[1:3]):
        first, last = code.rfind("\n", 0, start) + 1, code.find("\n", start)
        line = " ".join(text[first:last].strip(" \\").split())
        if INVISIBLE.search(line):
            continue
        before = " ".join(text[start:end].split())
        fault = KernelFault(file, kind, before, after, line, start, end)
        count = seen[str(fault)] = seen.get(str(fault), 0) + 1
        if count > 1:
            fault = KernelFault(file, kind, before, after, f"{line} ({count})", start, end)
        yield fault


def _changes(code: str) -> Iterator[tuple[str, int, int, str]]:
    """(kind, start, end, text in its place)."""
    for match in re.finditer(r"(?<=[\w)\]}] )([-+*/&|<>=!]+)(?= [-\w(*&{~!])", code):
        for kind, table in OPERATORS.items():
            statement = code[match.end() : code.find(";", match.end())]
            equal = kind == "off by one" and "?" in statement  # such as a < b ? a : b
            if match[1] in table and not equal:
                yield kind, *match.span(1), table[match[1]]
    for match in re.finditer(r"(?<![\w.])\d+(?![\w.])", code):
        yield "off by one", *match.span(), str(int(match[0]) + 1)
    for pair in TWINS:
        for name, twin in (pair, pair[::-1]):
            for match in re.finditer(rf"(?<![\w.]){name}(?!\w)(?! = )", code):
                # Not at the declaration, which ends differently.
                yield "swapped", *match.span(), twin
    for match in STATEMENT.finditer(code):
        whole = match[1].count("(") == match[1].count(")")
        if whole and not match[1].startswith(KEYWORDS):
            yield "dropped", *match.span(1), ";"
    for match in re.finditer(r"(?<!\w)if \(", code):
        end = _closing(code, match.end() - 1)
        yield "mask", match.end() - 1, end, f"(!{code[match.end() - 1 : end]})"


def _closing(code: str, start: int) -> int:
    depth = 0
    for place in range(start, len(code)):
        depth += {"(": 1, ")": -1}.get(code[place], 0)
        if not depth:
            return place + 1
    return len(code)


# --- compiling and loading -----------------------------------------------------------------------


def build_module() -> Any:
    """xbp/accelerators/cpu/build.py, which knows sources and compiler flags; None without it."""
    path = FOLDER / "build.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources() -> dict[str, str]:
    paths = sorted(path for path in FOLDER.rglob("*.[ch]"))
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def guards() -> dict[str, str]:
    """The source of guarded malloc, which tests/accelerators uses too."""
    path = Path(__file__).parents[1] / "accelerators" / "guarded.c"
    return {path.name: path.read_text(encoding="utf-8")}


def compile_into(folder: Path, texts: dict[str, str], flags: list[str], cc: str) -> Path | None:
    """The library of these sources, or None if they are not valid."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    target = folder / "kernels.so"
    files = [name for name in texts if name.endswith(".c")]
    command = [cc, *flags, "-w", "-shared", "-fPIC", "-o", target.name, *files, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return target if done.returncode == 0 else None


class Switch:
    """A stand-in for ctypes.CDLL: libraries from `FOLDER` can be exchanged after loading."""

    def __init__(self) -> None:
        self.real = ctypes.CDLL
        self.replacement: Any = None
        self.path: Path | None = None
        self.called: set[str] = set()

    def __call__(self, name: Any, *arguments: Any, **options: Any) -> Any:
        library = self.real(name, *arguments, **options)
        if FOLDER not in Path(str(name)).parents:
            return library
        self.path = Path(str(name))
        return Exchangeable(self, library)

    def use(self, path: Path) -> None:
        """Let all calls go to another library from now on."""
        self.replacement = self.real(str(path))

    def flags(self) -> list[str]:
        """The compiler command of that library without optimization, which is ten times as fast."""
        build = build_module()
        assert self.path is not None
        level = self.path.stem.rpartition("_")[2]
        options = [option for option in (*build.OPTIONS, *build.POSIX) if option[:2] != "-O"]
        options += [*SANITIZE, *GUARDED, *build.levels()[level], f"-DDIGEST={build.digest()}u"]
        return ["-O0", *options]


class Exchangeable:
    def __init__(self, switch: Switch, library: Any) -> None:
        self._switch, self._library = switch, library

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._library, name)  # an AttributeError if there is none
        if name.startswith("_"):
            return value
        return self[name]

    def __getitem__(self, name: str) -> Any:
        """Like ctypes, a new object with types of its own, and an AttributeError without one."""
        getattr(self._library, name)
        return Function(self._switch, self._library, name)


class Function:
    def __init__(self, switch: Switch, library: Any, name: str) -> None:
        self._switch, self._library, self._name = switch, library, name

    @property
    def _as_parameter_(self) -> Any:
        """The library itself, as an argument of another."""
        return getattr(self._switch.replacement or self._library, self._name)

    def __call__(self, *arguments: Any) -> Any:
        self._switch.called.add(self._name)
        function = self._as_parameter_
        for option in ("argtypes", "restype"):
            if option in vars(self):
                setattr(function, option, vars(self)[option])
        return function(*arguments)
