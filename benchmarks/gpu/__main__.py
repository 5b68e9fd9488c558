"""The command line; see the docstring of the package."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.facts import file_stem
from benchmarks.gpu.page import headline, page
from benchmarks.gpu.parts import GPU_ONLY, Part, Settings, parts
from benchmarks.gpu.running import ROOT, Outcome, Running, stop_all, wait_for_one
from benchmarks.gpu.schedule import END, allowance, forecast
from benchmarks.gpu.untried import NAME, untried
from xbp.benchmarks.workloads import on_gpu
from xbp.training.files import write_text


class Session:
    """Runs parts within a limited time, and writes the page after each.

    Attributes
    ----------
    outcomes : dict of str to Outcome
        By name of the part.
    """

    def __init__(
        self,
        settings: Settings,
        known: list[Part],
        facts: dict[str, str],
        minutes: float,
        end: float,
    ) -> None:
        self.settings, self.facts, self.minutes, self.end = settings, facts, minutes, end
        self.known = known
        self.outcomes = {part.name: Outcome(part, "not reached") for part in self.known}
        self.running: list[Running] = []

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()

    def go(self, chosen: Sequence[Part]) -> None:
        """Run the concurrent parts, then the others one by one."""
        try:
            left = self.left
            for part in chosen:
                if part.together:
                    self.start(part, allowance(part, left))
            self.finish()
            for part in chosen:
                if not part.together:
                    self.start(part, allowance(part, self.left))
                    self.finish()
        finally:  # Ctrl-C
            stop_all(self.running)
            for one in self.running:
                self.outcomes[one.part.name] = one.outcome()
            self.write()

    def start(self, part: Part, allowed: float) -> None:
        if not allowed:
            print(f"{part.name}: not reached; {max(0, self.left):.0f} s are left", flush=True)
            return
        most = "" if allowed == math.inf else f", {allowed:.0f} s at most"
        print(f"{part.name}: {part.what}{most}", flush=True)
        self.running.append(Running(part, self.settings.log(part.name), allowed))

    def finish(self) -> None:
        """Wait for all running parts, and write the page after each."""
        while self.running:
            ended = wait_for_one(self.running).outcome()
            self.outcomes[ended.part.name] = ended
            self.write()
            said = f"{ended.how}, {ended.seconds:.0f} s; {headline(ended, self.settings)}"
            print(f"{ended.part.name}: {said}", flush=True)

    def write(self) -> None:
        outcomes = self.outcomes | {one.part.name: one.outcome() for one in self.running}
        gpu_only = () if on_gpu(self.settings.backend) else GPU_ONLY
        left_out = dict.fromkeys(gpu_only, "only on a GPU")
        text = page([*outcomes.values()], self.settings, self.facts, self.minutes, left_out)
        write_text(self.page, text)

    @property
    def page(self) -> Path:
        return self.settings.folder / f"{self.settings.stem}.md"


def ask(backend: str, seconds: float) -> dict[str, str]:
    """Device, versions and commit, or the reason why one is unknown."""
    command = [sys.executable, "-m", "benchmarks.gpu.facts", backend]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"device": "unknown", "facts": f"no answer in {seconds:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return {"device": "unknown", "facts": last}
    facts: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return facts


def main() -> None:
    if sys.argv[1:2] == ["tune"]:
        from benchmarks.gpu.tuning.command import main as tune

        sys.exit(tune(sys.argv[2:]))
    if sys.argv[1:2] == ["launches"]:
        from benchmarks.gpu.launches import main as launches

        sys.exit(launches(sys.argv[2:]))
    if sys.argv[1:2] == ["roofline"]:
        from benchmarks.gpu.roofline.command import main as roofline

        sys.exit(roofline(sys.argv[2:]))
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="only these; by default all")
    parser.add_argument("--minutes", type=float, help="that there are; by default no limit")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--quick", action="store_true", help="only try that all of it works")
    given = parser.parse_args()
    minutes = math.inf if given.minutes is None else given.minutes
    if not minutes * 60 > END:
        parser.error(f"--minutes must be more than {END / 60:.2g}, got {minutes:g}")
    folder = given.output.absolute()
    facts = ask(given.backend, min(120.0, minutes * 60 / 4))
    stem = file_stem(given.backend, facts, given.quick)
    first = NAME in given.parts
    stem += f"_{NAME}" * first
    settings = Settings(given.backend, folder, stem, given.quick, given.minutes is not None)
    settings.log("").parent.mkdir(parents=True, exist_ok=True)
    usual, new = parts(settings), untried(settings)
    names = [*(part.name for part in usual), NAME]
    for name in given.parts:
        if name not in names:
            parser.error(f"there is no part {name!r}; choose from {', '.join(names)}")
    chosen = new * first + [part for part in usual if part.name in (given.parts or names)]
    known = chosen if first else usual
    run = Session(settings, known, facts, minutes, began + minutes * 60)
    late = [part.name for part in chosen if part.name not in forecast(chosen, run.left)]
    if late:
        print(f"probably not reached: {', '.join(late)}", flush=True)
    run.go(chosen)
    print(f"wrote {run.page}")
    sys.exit(any(run.outcomes[part.name].how != "done" for part in chosen))


if __name__ == "__main__":
    main()
