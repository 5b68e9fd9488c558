"""Execution of the cases, under limits of time and memory."""

from __future__ import annotations

import argparse
import collections
import faulthandler
import random
import sys
import tempfile
import warnings
from pathlib import Path

from fuzz import subjects
from xbp.errors import XBPError

SECONDS = 60  # for one case, on a busy machine
MEMORY = 256 << 20  # bytes, beyond those of the process at its start


def limit_memory() -> None:
    """Let the system refuse memory beyond MEMORY from now on."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def peak() -> int:
    """The peak memory of the process, in KiB on Linux."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def case(number: int, seed: int, kinds: list[subjects.Subject], folder: Path) -> tuple[str, str]:
    """(kind of file, result of reading it) for one mutated file."""
    choose = random.Random(f"{seed} {number}")
    subject = kinds[number % len(kinds)]
    mutation, guarded = choose.choice(subject.mutations)
    if mutation is subjects.bomb and choose.random() < 0.9:  # compressing them takes time
        mutation = subjects.regzipped
    content = mutation(choose, subject.content, [kind.content for kind in kinds])
    path = folder / "case"
    path.write_bytes(content)
    try:
        found = subject.load(path)
    except XBPError as error:
        sentence = str(error)
        assert sentence.isprintable(), f"not one line: {sentence!r}"
        assert len(sentence) < 2000, f"not one sentence: {sentence!r}"
        assert "fit into memory" not in sentence, "it takes more memory than it may"
        return subject.name, "refused"
    if guarded:
        assert found == subject.expected, f"{mutation.__name__}: it loads as something else"
    return subject.name, "loaded as it was" if found == subject.expected else "loaded"


def main(parser: argparse.ArgumentParser) -> int:
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = subjects.subjects(folder)
        for kind in kinds:
            (folder / "case").write_bytes(kind.content)
            kind.expected = kind.load(folder / "case")
        if arguments.only is not None:
            sys.stdout.write(f"{case(arguments.only, arguments.seed, kinds, folder)}\n")
            return 0
        warnings.simplefilter("error")
        limit_memory()
        before, counts = peak(), collections.Counter()
        for number in range(arguments.cases):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                counts[case(number, arguments.seed, kinds, folder)] += 1
            except BaseException as error:
                sys.stdout.write(f"case {number}: {type(error).__name__}: {error}\n")
                raise
        faulthandler.cancel_dump_traceback_later()
        for (kind, outcome), count in sorted(counts.items()):
            sys.stdout.write(f"{kind:16} {outcome:17} {count:6}\n")
        sys.stdout.write(
            f"{arguments.cases} files, no crash, no hang, nothing but refusals in one sentence; "
            f"memory grew by {(peak() - before) / 1024:.0f} MiB\n"
        )
    return 0
