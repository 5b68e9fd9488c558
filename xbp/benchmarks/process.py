"""A side of a benchmark in a process of its own, as the harness sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from xbp import machine
from xbp.benchmarks.options import Options
from xbp.benchmarks.workloads import SIDES, SWITCHED, on_gpu
from xbp.errors import XBPError
from xbp.machine import cpus

OURS = ("xbp", "xbp-eager", "reference")
XBP = (*OURS, *SWITCHED, "xbp-numpy")
"""The sides whose processes import xbp."""


class SideError(XBPError):
    """A side could not do what it was asked to do."""


class SideProcess:
    """The process of a side, and the pipes to it."""

    def __init__(self, name: str, options: Options, threads: int) -> None:
        side, folder = SIDES[name], Path(__file__).parent
        self.remarks: list[str] = []  # warnings of the side
        sent: dict[str, Any] = {
            "backend": options.backend,
            "device": options.device,
            "tf32": options.tf32,
            "bfloat16": options.bfloat16,
            "trainer": on_gpu(options.backend),
        }
        sent |= {"threads": threads, "cpus": cpus()[:threads], **side.options}
        self.errors = TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", folder / "worker.py", folder / side.file, json.dumps(sent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(name, options, threads),
            text=True,
            encoding="utf-8",
        )

    def ask(self, command: str, **job: Any) -> Any:
        """The side's answer to a command.

        Raises
        ------
        SideError
            The side could not do it, or its process has ended.
        """
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps([command, job]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip() or "it said nothing").splitlines()[-1]
            msg = f"the process ended with status {self.process.wait()}: {last}"
            raise SideError(msg)
        reply = json.loads(line)
        if "error" in reply:
            raise SideError(reply["error"])
        self.remarks += reply.get("remarks", [])
        return reply["answer"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def environment(name: str, options: Options, threads: int) -> dict[str, str]:
    """The environment of a side: a number of threads for all libraries, and default wait policies.

    By default OpenMP's threads spin for some milliseconds after their work (Intel's for 200) and
    then sleep. If they slept at once, each step of a peer would pay for wake-ups; if they spun for
    ever, they would disturb the other sides. So the default stays, and pauses separate the turns.
    """
    dropped = (
        "NVIDIA_TF32_OVERRIDE",
        "XBP_BACKEND",
        "XBP_ACCELERATE",
        "XBP_CAPTURE",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "KMP_BLOCKTIME",
    )
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    for key in ("XBP_NUM", "OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
        env[f"{key}_THREADS"] = str(threads)
    env |= {"CUPY_TF32": "01"[options.tf32], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env |= {} if on_gpu(options.backend) else {"JAX_PLATFORMS": "cpu"}
    if name in XBP:
        root = str(machine.ROOT)
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    return env | SIDES[name].environment
