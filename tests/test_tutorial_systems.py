"""The small systems of the tutorials: the printed numbers, and the results of training."""

import re

import pytest
from test_examples import RUNS, SEEDS, run

DIFFERS = "<- differs"


def test_the_worked_example_has_every_figure_to_nine_digits() -> None:
    lines = run("worked_2_2_2.py").splitlines()
    explanation = next(
        i for i, line in enumerate(lines) if line.startswith("The last three differ")
    )
    first, second = lines[1 : explanation - 1], lines[explanation + 1 :]
    off = [line.split("  ")[0].strip() for line in first if DIFFERS in line]
    assert off == ["E after 1", "E, 10000", "o, 10000"]
    assert sum(DIFFERS not in line for line in first) == 9
    # Exact arithmetic gives these.
    text = "\n".join(first)
    for exact in ("0.291027774", "0.000035102", "0.015913620  0.984064274"):
        assert exact in text
    # The tutorial's own figures result if w5 … w8 are changed too early.
    assert not any(DIFFERS in line for line in second)
    for printed in ("0.291027924", "0.000035085", "0.015912196  0.984065734"):
        assert "\n".join(second).count(printed) == 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_x_plus_2y_is_learned_to_a_mean_squared_error_below_1e_4(seed: int) -> None:
    output = run("x_plus_2y.py", "--seed", str(seed))
    assert float(output.rpartition("error ")[2]) < 1e-4


def test_xor_is_learned_for_each_seed() -> None:
    options, learned = RUNS["xor.py"]
    output = run("xor.py", *options)
    assert learned in output
    # Every run says why it ended: settled, or at the maximum number of epochs.
    assert len(re.findall(r"changed by less than 1e-07|all 2000 epochs done", output)) == 2 * int(
        SEEDS
    )
