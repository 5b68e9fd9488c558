"""A mutation campaign: planted faults, those that tests catch, and known survivors."""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import itertools
import mmap
import os
import random
import re
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mutation import kernels
from mutation.faults import Fault, faults
from mutation.kernels import NOT_COMPILED, KernelFault
from mutation.modules import (
    BESIDE,
    ROOT,
    files_of_tests,
    is_beside,
    is_near,
    may_have_near,
    name_of,
    of_tests,
    some_of_each,
    sources,
)
from mutation.plant import install
from mutation.suite import ERROR, Seen, Suite, processes

FIRST = (
    *("forward_equals_the_oracle", "ten_digits", "nothing_waits", "waits_for_nothing"),
    *(
        "equal_the_definition",
        "known_answers",
        "test_unfold_rows_shows",
        "test_fold_rows_adds",
        "to_a_few_ulps",
    ),
)
ABOUT_KERNELS = "accelerators"
"""Parts of the names of the tests for faults in C."""
SURVIVORS = Path(__file__).parent / "survivors.toml"
SECONDS = 15
"""Seconds between two lines of progress."""
NEAR_SECONDS = 20
"""Seconds of tests that one fault meets at most with --near, by the times of the watch."""
QUICK = ("scaled", "shifted", "sign", "transposed", "axis", "waits")
"""A sample is of faults of these kinds, in what the tests with one of those in their names run."""


def is_quick(module: str) -> bool:
    """Whether the tests of a module are collected for a sample."""
    return not module.startswith(("training", "data"))


class Python:
    """The modules of xbp, their trees, and their faults."""

    def __init__(self) -> None:
        self.trees: dict[str, ast.Module] = {}
        self.faults: list[Fault] = []
        self.originals: dict[str, ast.Module] = {}
        for path in sources():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.trees[name], self.originals[name] = tree, copy.deepcopy(tree)
            self.faults += faults(name, tree)

    def plant(self, fault: Fault) -> None:
        fault.plant()
        module = importlib.import_module(fault.module)
        install(module, fault.function, self.originals[fault.module], self.trees[fault.module])


class Kernels:
    """The compiled kernels' sources and their faults."""

    def __init__(self) -> None:
        build = kernels.build_module()
        self.cc = build.compiler() if build else None
        self.texts = kernels.sources()
        self.guards = kernels.guards()
        self.faults = [
            f for name, text in self.texts.items() for f in kernels.kernel_faults(name, text)
        ]

    def load(self, suite: Suite, texts: dict[str, str]) -> bool:
        """Compile and use these; whether that was possible."""
        with tempfile.TemporaryDirectory() as folder:
            flags = suite.switch.flags()
            texts = texts | self.guards
            library = kernels.compile_into(Path(folder), texts, flags, str(self.cc))
            if library is not None:
                suite.switch.use(library)
        return library is not None


def expected() -> dict[str, dict[str, Any]]:
    """The known survivors, with the group of each: its reason, and whether its faults are
    sometimes caught, `by_chance`."""
    listed = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))
    return {fault: group for group in listed["group"] for fault in group["faults"]}


def stale(faults: Iterable[str], known: Iterable[str]) -> list[str]:
    """Known survivors whose fault no longer exists."""
    there = set(faults)
    return [name for name in known if name not in there]


def remove(text: str, names: Iterable[str]) -> str:
    """The text of survivors.toml without these, and without empty groups."""
    gone = {f"  '''{name}'''," for name in names}
    lines = [line for line in text.splitlines() if line not in gone]
    head, *groups = re.split(r"^(?=\[\[group\]\])", "\n".join(lines) + "\n", flags=re.MULTILINE)
    return head + "".join(group for group in groups if "'''" in group).rstrip() + "\n"


def main(parser: argparse.ArgumentParser) -> int:
    parser.add_argument("names", nargs="*", help="only faults with one of these in their names")
    parser.add_argument("--sample", type=int, default=0, help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--list", action="store_true", help="print the faults and plant none")
    parser.add_argument("--near", action="store_true", help="only the tests nearest to the names")
    what = "remove survivors that are no more there from survivors.toml, and plant none"
    parser.add_argument("--remove-stale", action="store_true", help=what)
    options = parser.parse_args()
    if options.remove_stale:
        every = [*Python().faults, *Kernels().faults]
        text = SURVIVORS.read_text(encoding="utf-8")
        SURVIVORS.write_text(remove(text, stale(map(str, every), expected())), encoding="utf-8")
        return 0
    return Campaign(options).result


class Campaign:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.known = options, expected()
        self.python, self.kernels = Python(), Kernels()
        self.result = 0
        self.quick = bool(options.sample and not options.names)
        every: list[Fault | KernelFault] = [*self.python.faults, *self.kernels.faults]
        self.planted = [fault for fault in every if self.wanted(str(fault))]
        if options.near:  # what is listed would meet every test in vain
            self.planted = [fault for fault in self.planted if str(fault) not in self.known]
        self.stale = stale(map(str, every), self.known)
        self.caught: dict[str, bool] = {}
        """Results for the faults tried so far."""
        self.failing: list[str] = []
        if options.list:
            print(*self.planted, sep="\n")  # noqa: T201
            return
        if not self.planted:
            msg = f"no fault has one of these in its name: {', '.join(options.names)}"
            raise SystemExit(msg)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
        print(len(self.planted), "faults; collecting tests", file=sys.stderr)  # noqa: T201
        Suite(self.paths(), self.run)

    def paths(self) -> list[str]:
        """The files and folders to collect tests and doctests from."""
        paths = [path for path in sources() if not self.quick or is_quick(name_of(path))]
        tests = of_tests(paths)
        if self.options.near and not self.kernel_faults():
            near = self.modules()
            paths = [path for path in paths if name_of(path) in near]
            files = sorted({file for place in tests for file in files_of_tests(place)})
            tests = [file for file in files if any(may_have_near(file, m) for m in near)]
        return [*tests, *(str(path.relative_to(ROOT)) for path in paths)]

    def modules(self) -> set[str]:
        """The modules of the faults in Python, without "xbp."."""
        return {f.module.partition(".")[2] for f in self.planted if isinstance(f, Fault)}

    def wanted(self, name: str) -> bool:
        return not self.options.names or any(part in name for part in self.options.names)

    def run(self, suite: Suite) -> None:
        self.suite, self.told = suite, time.monotonic()
        try:
            self.rounds()
        except KeyboardInterrupt:
            tried = [fault for fault in self.planted if str(fault) in self.caught]
            self.say(f"\ninterrupted: {len(tried)} of {len(self.planted)} faults were tried")
            self.planted, self.stale = tried, []
            self.judge()
            self.result = 130
            return
        self.judge()

    def rounds(self) -> None:
        """Show the faults to some of the nearest tests; what they let pass, to the others of these
        and some of their folder; and what is left, to all."""
        importlib.import_module("xbp.accelerators").registered()  # loads the kernels
        gc.freeze()
        first = near = self.first()
        if self.options.names and not self.kernel_faults():
            names = [self.suite.items[i].nodeid for i in near]
            first = sorted({near[i] for m in self.modules() for i in some_of_each(names, m)})
        self.watch(first)
        at_work = self.orders.kernels and self.kernels.cc
        if not at_work and not self.quick and self.kernel_faults():
            self.say("no kernels are at work here: build them by xbp/accelerators/cpu/build.py")
            self.planted = [f for f in self.planted if isinstance(f, Fault)]
        if self.options.sample:
            usual = [f for f in self.planted if str(f) not in self.known]
            usual = [f for f in usual if not self.quick or self.orders.quick(f)]
            size = min(self.options.sample, len(usual))
            self.planted = random.Random(self.options.seed).sample(usual, size)
        self.attempts(self.planted)
        if self.quick:
            return
        near = [*near, *self.beside()]
        self.show_to_others(near, first)
        if not self.options.near:
            self.show_to_others(range(len(self.suite.items)), near)

    def beside(self) -> list[int]:
        """Some of the tests in the mirror folders of the modules."""
        names = [item.nodeid for item in self.suite.items]
        every = (some_of_each(names, m, is_beside, BESIDE) for m in self.modules())
        return sorted({index for indices in every for index in indices})

    def show_to_others(self, tests: Iterable[int], tried: Iterable[int]) -> None:
        """Show what was not caught, and is not listed, to these tests without those tried."""
        left = [f for f in self.planted if isinstance(f, Fault) and not self.caught[str(f)]]
        left = [f for f in left if str(f) not in self.known]
        others = sorted(set(tests) - set(tried))
        if left and others:
            self.tell(f"{len(left)} faults are left for the {len(others)} other tests")
            self.watch(others)
            self.attempts(left)

    def kernel_faults(self) -> list[KernelFault]:
        return [fault for fault in self.planted if isinstance(fault, KernelFault)]

    def first(self) -> list[int]:
        """The tests that run first."""
        ids = [item.nodeid for item in self.suite.items]
        if self.quick:
            return [i for i, name in enumerate(ids) if any(part in name for part in FIRST)]
        if not self.options.names:
            return list(range(len(ids)))
        modules, kernels = self.modules(), bool(self.kernel_faults())
        return [
            index
            for index, name in enumerate(ids)
            if (kernels and ABOUT_KERNELS in name) or any(is_near(name, m) for m in modules)
        ]

    def watch(self, indices: Sequence[int]) -> None:
        self.tell(f"{len(indices)} tests to be watched")
        seen = self.suite.watch(indices, self.options.jobs, self.tell_now_and_then)
        self.orders = Orders(seen, [item.nodeid for item in self.suite.items])
        failing = [self.suite.items[i].nodeid for i, what in seen.items() if not what.passed]
        if failing:  # such tests are of no use; better stop now than read it at the end
            self.tell(f"{len(failing)} tests fail, though nothing is broken, such as {failing[0]}")
        self.failing += failing

    def attempts(self, faults: Sequence[Fault | KernelFault]) -> None:
        left = Counter(fault.module for fault in faults)
        of = left.copy()
        tasks = [(fault, self.attempt) for fault in faults]
        with contextlib.closing(processes(tasks, self.options.jobs)) as ended:
            for fault, status in ended:
                left[fault.module] -= 1
                if status == ERROR:
                    msg = f"the run itself is at fault: {fault}"
                    raise SystemExit(msg)
                if status == NOT_COMPILED:
                    self.planted.remove(fault)
                else:
                    caught = self.caught[str(fault)] = status != 1
                    if not caught:
                        self.say(f"survived: {fault}" + " (listed)" * (str(fault) in self.known))
                tried = f"{fault.module}: {of[fault.module] - left[fault.module]} of "
                tried += f"{of[fault.module]} faults tried"
                (self.tell_now_and_then if left[fault.module] else self.tell)(tried)

    def tell(self, line: str) -> None:
        """Print progress on stderr."""
        print(line, file=self.suite.err)
        self.told = time.monotonic()

    def tell_now_and_then(self, line: str) -> None:
        if time.monotonic() > self.told + SECONDS:
            self.tell(line)

    def attempt(self, fault: Fault | KernelFault) -> int:
        if isinstance(fault, KernelFault):
            changed = fault.planted(self.kernels.texts[fault.file])
            if not self.kernels.load(self.suite, {**self.kernels.texts, fault.file: changed}):
                return NOT_COMPILED
        else:
            self.python.plant(fault)
        order = list(self.orders(fault))
        if self.options.near:
            order = affordable(order)
        if self.quick:  # what the quick tests let pass, one of all the others may catch
            tried = {index for index, _ in order}
            others = set(range(len(self.suite.items))) - tried
            order += [(index, 1.0) for index in sorted(others)]
        return 0 if self.suite.catches(order, self.orders.note) else 1

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self.suite.out)

    def summary(self) -> None:
        for what in ("kind", "module"):
            totals: dict[str, Counter[bool]] = defaultdict(Counter)
            for fault in self.planted:
                totals[getattr(fault, what)][self.caught[str(fault)]] += 1
            self.say(f"\n{'caught':>8} {'of':>6}  {what}")
            for name, count in sorted(totals.items()):
                self.say(f"{count[True]:8} {count.total():6}  {name}")

    def judge(self) -> None:
        self.summary()
        survived = [name for name in map(str, self.planted) if not self.caught[name]]
        caught, total = len(self.planted) - len(survived), len(self.planted)
        visible = total - sum(name in self.known for name in survived)
        share = caught / visible if visible else 1.0
        self.say(f"\n{caught} of {total} faults caught: {100 * caught / (total or 1):.2f} %")
        listed = f"without the {total - visible} that change nothing (survivors.toml)"
        self.say(f"{caught} of {visible} {listed}: {100 * share:.2f} %")
        problems = [
            f"not caught, and not listed: {name}" for name in survived if name not in self.known
        ]
        if not self.options.sample:
            gone = [name for name in self.stale if self.wanted(name)]
            problems += [f"listed, but there is no such fault (--remove-stale): {n}" for n in gone]
        for name, group in self.known.items():
            if self.caught.get(name) and "by_chance" not in group:
                problems.append(f"listed as a survivor, but caught: {name}")
        problems += [f"fails, though nothing is broken: {name}" for name in self.failing]
        self.say(*problems)
        self.result = int(bool(problems) or share < 0.99)


class Orders:
    """For a fault, the tests that run its function: those that caught the most so far, then the
    fastest."""

    def __init__(self, seen: dict[int, Seen], names: list[str]) -> None:
        self.caught = mmap.mmap(-1, 4 * len(names))  # shared by all processes
        self.seconds = {index: what.seconds for index, what in seen.items() if what.passed}
        self.by_function: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.by_file: dict[str, set[int]] = defaultdict(set)
        # Hundreds of tests run a kernel; these test nothing else.
        about = {i for i in seen if seen[i].kernels and ABOUT_KERNELS in names[i]}
        self.kernels = sorted(about & self.seconds.keys(), key=self.seconds.__getitem__)
        for index in sorted(self.seconds, key=self.seconds.__getitem__):
            for file, name in seen[index].functions:
                self.by_function[file, name].append(index)
                self.by_file[file].add(index)

    def quick(self, fault: Fault | KernelFault) -> bool:
        """Whether the tests of its own function should catch a fault of this kind."""
        layered = fault.module.startswith(("xbp.nn", "xbp.optim", "xbp.primitives", "xbp.models"))
        if isinstance(fault, KernelFault) or fault.kind not in QUICK:
            return False
        return layered and (_file(fault), fault.function) in self.by_function

    def note(self, index: int, change: int) -> None:
        """A test begins, and may crash: +1; it has passed: -1.

        Of two processes at once one may be lost, so that a count may also be below 0: it only
        says which test goes first.
        """
        memoryview(self.caught).cast("i")[index] += change

    def __call__(self, fault: Fault | KernelFault) -> Iterable[tuple[int, float]]:
        indices = self.kernels
        if isinstance(fault, Fault):
            file = _file(fault)
            known = self.by_function.get((file, fault.function))
            # without it, a constant, or a function that nothing runs
            indices = known or sorted(self.by_file[file], key=self.seconds.__getitem__)
        count = memoryview(self.caught).cast("i")
        order = sorted(indices, key=lambda index: -count[index])
        return [(index, self.seconds[index]) for index in order]


def affordable(order: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The first tests that take no more than `NEAR_SECONDS` in all."""
    until = itertools.accumulate(seconds for _, seconds in order)
    return [test for test, end in zip(order, until, strict=True) if end <= NEAR_SECONDS]


def _file(fault: Fault) -> str:
    return str(ROOT / Path(*fault.module.split("."))) + ".py"
