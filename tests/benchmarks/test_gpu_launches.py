"""``python -m benchmarks.gpu launches``: recorded graphs, as CUDA describes them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu.launches import layout, main, programmatic, report
from xbp.accelerators.cuda import dependent

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
    text = report("lenet5-train", 128, found._replace(programmatic=17))
    assert "19 on the longest path, 17 of 20 dependencies programmatic\n" in text


def test_programmatic_dependencies_are_those_that_the_driver_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types = [1, 0, 1]

    def edges(graph: Any, earlier: Any, later: Any, data: Any, count: Any) -> int:
        assert graph.value == 77 and (earlier is None) == (later is None) == (data is None)
        count._obj.value = len(types)
        for i in range(len(types) if data is not None else 0):
            data[i].type = types[i]
        return 0

    driver = SimpleNamespace(cuGraphGetEdges_v2=edges)
    monkeypatch.setattr(dependent, "library", lambda: driver)
    monkeypatch.delenv("XBP_DEPENDENT_LAUNCH", raising=False)
    assert programmatic(77) is None
    monkeypatch.setenv("XBP_DEPENDENT_LAUNCH", "1")
    assert programmatic(77) == 2
    types.clear()
    assert programmatic(77) == 0
    driver.cuGraphGetEdges_v2 = lambda *_: 801
    assert programmatic(77) is None
    del driver.cuGraphGetEdges_v2  # before CUDA 12.3
    assert programmatic(77) is None


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
