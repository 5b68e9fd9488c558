"""``python -m benchmarks.gpu launches``: recorded graphs, as CUDA describes them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu.launches import layout, main, report

LENET = Path(__file__).with_name("lenet5_step_h200.dot")
"""The training step of LeNet-5 at batch 128, recorded on an H200 by CuPy 14.2."""


def test_launches_of_a_recorded_step() -> None:
    found = layout(LENET.read_text(encoding="utf-8"))
    assert len(found.names) == 20 and [*found.names.values()].count("multiply") == 6
    assert sum(map(len, found.before.values())) == 20
    names = [found.names[node] for node in found.longest]
    # ∂L/∂x of the second convolution is beside its ∂L/∂W and the sum of the parts.
    assert len(names) == 19 and "convolve_to_input" not in names
    assert names[0] == "take" and names[-1] == "append"
    text = report("lenet5-train", 128, found)
    assert text.startswith("lenet5-train, batch 128: 20 launches, 19 on the longest path\n")
    assert "multiply 6, take 2" in text


def test_a_path_is_the_longest_of_several() -> None:
    names = "abcde"
    nodes = [
        f'"{name}"[shape="octagon" label="{i}\n{name}_kernel\n"];' for i, name in enumerate(names)
    ]
    edges = [f'"{pair[0]}" -> "{pair[1]}";' for pair in ("ab", "ac", "bd", "de", "ce")]
    found = layout("\n".join(["digraph dot {", *nodes, *edges, "}"]))
    assert found.longest == ["a", "b", "d", "e"]
    assert found.names["c"] == "c_kernel" and found.before["e"] == {"c", "d"}
    assert layout("digraph dot {\n}").longest == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lenet"], "there is no training step 'lenet'; choose from lenet5-train"),
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
    ],
)
def test_mistakes(
    words: list[str], said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "launches", *words])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "the 'cupy' backend is not installed" in capsys.readouterr().err


def test_a_step_of_cupy(capsys: Any) -> None:
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    assert main(["mlp-128", "--batch", "32"]) == 0
    assert "mlp-128, batch 32: " in capsys.readouterr().out
