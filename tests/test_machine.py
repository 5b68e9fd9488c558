"""Facts about a machine: versions, commit, processor, devices."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import xbp
from xbp import machine
from xbp.machine import facts_of, surroundings


def fake_cupy(**broken: Any) -> Any:
    """A stand-in for CuPy with the values of an H200 that a certificate reads."""
    properties = {"name": b"NVIDIA H200", "totalGlobalMem": 150_121_545_728, "major": 9, "minor": 0}
    runtime = {
        "getDeviceCount": lambda: 2,
        "getDeviceProperties": lambda index: properties | {"pciBusID": index},
        "driverGetVersion": lambda: 12080,
        "runtimeGetVersion": lambda: 13000,
    } | broken
    cuda = SimpleNamespace(
        is_available=lambda: True,
        Device=lambda index: SimpleNamespace(id=index),
        runtime=SimpleNamespace(**runtime),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(smi: str = "570.86.15\n570.86.15", **broken: Any) -> None:
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**broken))
        monkeypatch.setitem(sys.modules, "array_api_compat.cupy", SimpleNamespace())
        monkeypatch.setattr(machine, "output", lambda *command: smi)

    return install


def test_the_facts_of_a_gpu(with_gpu: Callable[..., None]) -> None:
    with_gpu()
    assert facts_of("cupy") == {
        "device": "NVIDIA H200, compute capability 9.0, 140 GiB",
        "driver": "570.86.15",
        "CUDA of the driver": "12.8",
        "CUDA runtime": "13.0",
    }


def test_a_gpu_without_nvidia_smi(with_gpu: Callable[..., None]) -> None:
    with_gpu(smi="")
    facts = facts_of("cupy")
    assert "driver" not in facts and facts["CUDA runtime"] == "13.0"


def test_a_gpu_that_does_not_answer_does_not_cost_the_certificate(
    with_gpu: Callable[..., None],
) -> None:
    def fails(index: int) -> Any:
        msg = "cudaErrorUnknown: unknown error"
        raise RuntimeError(msg)

    with_gpu(getDeviceProperties=fails)
    assert facts_of("cupy")["more"] == (
        "cannot be told (RuntimeError: cudaErrorUnknown: unknown error)"
    )


def test_the_facts_of_torch_on_the_cpu() -> None:
    torch = pytest.importorskip("torch")
    assert facts_of("torch") == {"device": "cpu", "threads": str(torch.get_num_threads())}


def test_the_facts_of_torch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(
        cuda=SimpleNamespace(
            get_device_capability=lambda device: (9, 0),
            get_device_name=lambda device: "NVIDIA H200",
        ),
        version=SimpleNamespace(cuda="12.8"),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(machine, "output", lambda *command: "570.86.15")
    assert machine._torch_facts(SimpleNamespace(type="cuda")) == {
        "device": "NVIDIA H200, compute capability 9.0",
        "driver": "570.86.15",
        "CUDA runtime": "12.8",
    }


def test_the_commit_is_that_of_xbps_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "xbp"
    package.mkdir()
    (package / "__init__.py").touch()

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    installed = tmp_path / "venv" / "xbp" / "__init__.py"  # inside another repository
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", installed.parents[1])
    assert "commit" not in surroundings()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert surroundings()["commit"] == commit
    assert machine.commit(digits=7) == commit[:7]
    (package / "new.py").touch()
    assert surroundings()["commit"] == f"{commit}, with changes to xbp"


def test_programs_that_are_missing_or_fail_say_nothing() -> None:
    assert machine.output("no-such-program-anywhere") == ""
    assert machine.output(sys.executable, "-c", "print(1); raise SystemExit(3)") == ""
    assert machine.output(sys.executable, "-c", "print(1)") == "1"


def test_the_surroundings_are_those_of_here() -> None:
    found = surroundings()
    assert next(iter(found)) == "xbp" and list(found)[-2:] == ["system", "processor"]
    assert (found["xbp"], found["python"]) == (xbp.__version__, platform.python_version())
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert all(found.values())


@pytest.mark.parametrize("error", [importlib.metadata.PackageNotFoundError, OSError, KeyError])
def test_a_distribution_that_is_not_installed_or_half_so_has_no_version(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> Any:
        if name == "nothing":
            return None  # metadata without the line
        if name != "whole":
            raise error(name)
        return "1.2"

    monkeypatch.setattr(machine.metadata, "version", version)
    assert machine.versions(["whole", "half", "nothing"]) == {"whole": "1.2"}
    assert machine.version("half") == ""


def test_a_device_in_words() -> None:
    device = machine.Device("NVIDIA H200", (9, 0), 150_121_545_728)
    assert str(device) == "NVIDIA H200, compute capability 9.0, 140 GiB"


def test_one_place_says_what_a_machine_is() -> None:
    """Only `machine` asks the system for versions, the commit or the processor."""
    asking = re.compile(r"metadata\.version|cpuinfo|rev-parse|platform\.processor|nvidia-smi\W,")
    package = Path(xbp.__file__).parent
    places = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if asking.search(path.read_text(encoding="utf-8"))
    }
    assert places == {"machine.py"}
