"""The code of the README runs unchanged, and is that of the Chinese one."""

import re
from pathlib import Path

import numpy as np
import pytest

import xbp

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_loop_and_the_trainer_run(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), test = xbp.datasets.load_mnist()
    small = (x[:2560], y[:2560]), (test[0][:500], test[1][:500])
    monkeypatch.setattr(xbp.datasets, "load_mnist", lambda: small)
    names: dict[str, object] = {}
    exec(BLOCKS[0].replace("60_000", "2_500"), names)
    exec(BLOCKS[1], names)
    alone = BLOCKS[2].replace('"mpi"', '"alone"')
    exec(alone.replace("60_000", "2_500"), names)
    exec(BLOCKS[3], names)
    history = names["history"]
    assert isinstance(history, xbp.History)
    assert history["loss"][-1] < np.log(10)


@pytest.mark.parametrize("index", [4, 5])
def test_the_other_blocks_run(index: int) -> None:
    pytest.importorskip("array_api_strict")
    exec("import xbp\n" + BLOCKS[index], {})


def test_all_blocks_are_run_here() -> None:
    assert len(BLOCKS) == 6


def test_the_chinese_readme_has_the_same_code() -> None:
    code = r"```\w+\n.*?```"
    assert re.findall(code, CHINESE, re.DOTALL) == re.findall(code, README, re.DOTALL)
    assert "(README.zh-CN.md)" in README
    assert "(README.md)" in CHINESE


def test_the_test_command_is_one_line_for_ci() -> None:
    command = r"^python3 -m venv .*pytest -n auto --dist worksteal$"
    assert len(re.findall(command, README, re.MULTILINE)) == 1
