"""``python -m benchmarks.gpu``: its parts, where they write, that each goes on."""

import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from xbp.benchmarks.workloads import WORKLOADS


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run it with stand-ins for its parts' programs: exit status, and the commands run."""

    def run(*args, statuses=()):
        ran, left = [], list(statuses)

        def part(command, *, cwd, **options):
            ran.append(command)
            status = left.pop(0) if left else 0
            return type("Done", (), {"returncode": status, "stdout": f"part {len(ran)}\n"})()

        monkeypatch.setattr(gpu.subprocess, "run", part)
        monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "new"), *args])
        with pytest.raises(SystemExit) as exit_:
            gpu.main()
        return exit_.value.code, [words[3:] for words in ran]

    return run


def test_by_default_everything(command, tmp_path):
    folder = str(tmp_path / "new")
    status, (info, parity, tests, tf32, bench) = command()
    assert status == 0
    assert info == ["info"]
    assert parity == ["parity", "--backend", "cupy", "--output", folder]
    assert tests == ["-q", "--xbp-require", "cupy"]
    assert tf32[:6] == [*bench, "--tf32"]
    assert bench == ["bench", "--backend", "cupy", "--output", folder]
    assert (Path(folder) / "gpu_info.txt").read_text() == "part 1\n"
    assert (Path(folder) / "gpu_tests.txt").read_text() == "part 3\n"


def test_a_part_that_fails_does_not_stop_the_others(command, capsys):
    status, ran = command("info", "seeds", "step", statuses=[0, 2, 0])
    assert status == 1
    assert [words[-1] for words in ran[:2]] == ["info", "seeds"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "'info': 'done" in last
    assert "'seeds': 'status 2" in last
    assert "'step': 'done" in last


def test_an_unknown_part_comes_to_nothing(command, capsys):
    status, ran = command("info", "everything")
    assert (status, ran) == (2, [])
    assert "no part 'everything'; choose from info, parity" in capsys.readouterr().err


def test_the_workloads_exist():
    assert set(gpu.STEP) <= set(WORKLOADS)


def test_parts_are_told():
    for part in gpu.commands("cupy", Path("x"), quick=False):
        assert f"\n    {part} " in gpu.__doc__
