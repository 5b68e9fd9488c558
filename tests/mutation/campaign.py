"""A mutation campaign: planted faults, those that tests catch, and known survivors."""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import mmap
import os
import random
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mutation import kernels
from mutation.faults import Fault, faults
from mutation.kernels import NOT_COMPILED, KernelFault
from mutation.plant import install
from mutation.suite import ERROR, ROOT, Seen, Suite, processes

SOURCES = (
    *("xbp/nn", "xbp/optim", "xbp/primitives", "xbp/accelerators", "xbp/accelerators/cpu"),
    "xbp/models/lenet1998",
)
FILES = ("xbp/initializers.py", "xbp/random.py")
TESTS = (
    *("tests/nn", "tests/optim", "tests/primitives", "tests/accelerators", "tests/properties"),
    "tests/models/lenet1998",
    *("tests/test_initializers.py", "tests/test_random.py"),
)
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
"""In the names of the tests that faults in C are shown to."""
QUICK = ("scaled", "shifted", "sign", "transposed", "axis", "waits")
"""A sample is of faults of these kinds, in what the tests with one of those in their names run."""


def sources() -> list[Path]:
    paths = [path for folder in SOURCES for path in sorted((ROOT / folder).glob("*.py"))]
    # build.py only calls a compiler.
    return [path for path in [*paths, *(ROOT / file for file in FILES)] if path.stem != "build"]


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
    """The compiled kernels' sources and their faults; none where they cannot be compiled."""

    def __init__(self) -> None:
        build = kernels.build_module()
        self.cc = build.compiler() if build else None
        self.texts = kernels.sources() if self.cc else {}
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
    """The survivors that are known, with the group of each: its reason, and whether its faults are
    caught `by_chance`, now and then."""
    listed = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text(encoding="utf-8"))
    return {fault: group for group in listed["group"] for fault in group["faults"]}


def main(parser: argparse.ArgumentParser) -> int:
    parser.add_argument("names", nargs="*", help="only faults with one of these in their names")
    parser.add_argument("--sample", type=int, default=0, help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--list", action="store_true", help="print the faults and plant none")
    options = parser.parse_args()
    return Campaign(options).result


class Campaign:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.known = options, expected()
        self.python, self.kernels = Python(), Kernels()
        self.result = 0
        self.quick = bool(options.sample and not options.names)
        every: list[Fault | KernelFault] = [*self.python.faults, *self.kernels.faults]
        self.planted = [fault for fault in every if self.wanted(str(fault))]
        if options.list:
            print(*self.planted, sep="\n")  # noqa: T201
            return
        Suite([*TESTS, *SOURCES, *FILES], self.run)

    def wanted(self, name: str) -> bool:
        return not self.options.names or any(part in name for part in self.options.names)

    def run(self, suite: Suite) -> None:
        self.suite = suite
        importlib.import_module("xbp.accelerators").registered()  # loads the kernels
        indices = range(len(suite.items))
        if self.quick:
            here = [i for i in indices if any(part in suite.items[i].nodeid for part in FIRST)]
        elif all(isinstance(fault, KernelFault) for fault in self.planted):
            here = [i for i in indices if ABOUT_KERNELS in suite.items[i].nodeid]
        else:
            here = list(indices)
        seen = suite.watch(here, self.options.jobs)
        self.orders = Orders(seen, [item.nodeid for item in suite.items])
        if not self.orders.kernels and not self.quick:
            self.say("no kernels are at work here: build them by xbp/accelerators/cpu/build.py")
            self.planted = [f for f in self.planted if isinstance(f, Fault)]
        if self.options.sample:
            usual = [f for f in self.planted if str(f) not in self.known]
            usual = [f for f in usual if not self.quick or self.orders.quick(f)]
            size = min(self.options.sample, len(usual))
            self.planted = random.Random(self.options.seed).sample(usual, size)
        gc.freeze()
        survived: list[str] = []
        counts: dict[tuple[str, str], Counter[bool]] = defaultdict(Counter)
        tasks = ((fault, self.attempt) for fault in list(self.planted))
        for fault, status in processes(tasks, self.options.jobs):
            if status == ERROR:
                msg = f"the run itself is at fault: {fault}"
                raise SystemExit(msg)
            if status == NOT_COMPILED:
                self.planted.remove(fault)
                continue
            caught = status != 1
            counts[fault.module, fault.kind][caught] += 1
            if not caught:
                survived.append(str(fault))
                self.say(f"survived: {fault}" + " (listed)" * (str(fault) in self.known))
        self.summary(counts)
        self.judge(survived, [name for name, s in seen_failures(suite, seen)])

    def attempt(self, fault: Fault | KernelFault) -> int:
        if isinstance(fault, KernelFault):
            changed = fault.planted(self.kernels.texts[fault.file])
            if not self.kernels.load(self.suite, {**self.kernels.texts, fault.file: changed}):
                return NOT_COMPILED
        else:
            self.python.plant(fault)
        order = list(self.orders(fault))
        if self.quick:  # what the quick tests let pass, one of all the others may catch
            tried = {index for index, _ in order}
            others = set(range(len(self.suite.items))) - tried
            order += [(index, 1.0) for index in sorted(others)]
        return 0 if self.suite.catches(order, self.orders.note) else 1

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self.suite.out)

    def summary(self, counts: dict[tuple[str, str], Counter[bool]]) -> None:
        for position, title in ((1, "kind"), (0, "module")):
            totals: dict[str, Counter[bool]] = defaultdict(Counter)
            for key, count in counts.items():
                totals[key[position]] += count
            self.say(f"\n{'caught':>8} {'of':>6}  {title}")
            for name, count in sorted(totals.items()):
                self.say(f"{count[True]:8} {count.total():6}  {name}")

    def judge(self, survived: list[str], failing: list[str]) -> None:
        caught, total = len(self.planted) - len(survived), len(self.planted)
        visible = total - sum(name in self.known for name in survived)
        share = caught / visible if visible else 1.0
        self.say(f"\n{caught} of {total} faults caught: {100 * caught / (total or 1):.2f} %")
        listed = f"without the {total - visible} that change nothing (survivors.toml)"
        self.say(f"{caught} of {visible} {listed}: {100 * share:.2f} %")
        names = {str(fault) for fault in self.planted}
        problems = [
            f"not caught, and not listed: {name}" for name in survived if name not in self.known
        ]
        complete = not self.options.sample and not self.options.names
        for name, group in self.known.items():
            if complete and name not in names:
                problems.append(f"listed, but there is no such fault: {name}")
            elif name in names and name not in survived and "by_chance" not in group:
                problems.append(f"listed as a survivor, but caught: {name}")
        problems += [f"fails, though nothing is broken: {name}" for name in failing]
        self.say(*problems)
        self.result = int(bool(problems) or share < 0.99)


def seen_failures(suite: Suite, seen: dict[int, Seen]) -> Iterator[tuple[str, Seen]]:
    for index, what in seen.items():
        if not what.passed:
            yield suite.items[index].nodeid, what


class Orders:
    """For a fault, the tests that run its function, the fastest first; of kernels, the test that
    caught the most so far."""

    def __init__(self, seen: dict[int, Seen], names: list[str]) -> None:
        self.caught = mmap.mmap(-1, 4 * len(names))  # shared by all processes
        self.seconds = {index: what.seconds for index, what in seen.items() if what.passed}
        self.by_function: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.by_file: dict[str, set[int]] = defaultdict(set)
        # Hundreds of tests run a kernel somewhere; these are about nothing else.
        about = {i for i in seen if seen[i].kernels and ABOUT_KERNELS in names[i]}
        self.kernels = sorted(about & self.seconds.keys(), key=self.seconds.__getitem__)
        for index in sorted(self.seconds, key=self.seconds.__getitem__):
            for file, name in seen[index].functions:
                self.by_function[file, name].append(index)
                self.by_file[file].add(index)

    def quick(self, fault: Fault | KernelFault) -> bool:
        """Whether it is of a kind that the tests here, of its very function, should catch."""
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
        if isinstance(fault, KernelFault):
            count = memoryview(self.caught).cast("i")
            order = sorted(self.kernels, key=lambda index: -count[index])
            return [(index, self.seconds[index]) for index in order]
        file = _file(fault)
        indices = self.by_function.get((file, fault.function))
        if indices is None:  # a constant, or a function that nothing runs
            indices = sorted(self.by_file[file], key=self.seconds.__getitem__)
        return [(index, self.seconds[index]) for index in indices]


def _file(fault: Fault) -> str:
    return str(ROOT / Path(*fault.module.split("."))) + ".py"
