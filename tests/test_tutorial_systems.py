"""The small systems of the tutorials: the printed numbers, and the results of training."""

import re
from math import exp

import pytest
from nightly import NIGHTLY
from test_examples import RUNS, SEEDS, run

DIFFERS = "<- differs"


def by_hand(steps: int, *, as_printed: bool) -> str:
    """E, and o₁ and o₂, of the worked example after some steps, from its formulas."""
    w, v = [0.15, 0.20, 0.25, 0.30], [0.40, 0.45, 0.50, 0.55]
    x, t = (0.05, 0.10), (0.01, 0.99)

    def layer(weights: list[float], given: tuple[float, float], bias: float) -> tuple[float, float]:
        a, b, c, d = weights
        first, second = a * given[0] + b * given[1] + bias, c * given[0] + d * given[1] + bias
        return 1 / (1 + exp(-first)), 1 / (1 + exp(-second))

    for _ in range(steps):
        h = layer(w, x, 0.35)
        o = layer(v, h, 0.60)
        d = [(o[i] - t[i]) * o[i] * (1 - o[i]) for i in (0, 1)]
        new = [v[k] - 0.5 * d[k // 2] * h[k % 2] for k in range(4)]
        back = new if as_printed else v
        e = [(d[0] * back[i] + d[1] * back[i + 2]) * h[i] * (1 - h[i]) for i in (0, 1)]
        w, v = [w[k] - 0.5 * e[k // 2] * x[k % 2] for k in range(4)], new
    o = layer(v, layer(w, x, 0.35), 0.60)
    error = ((o[0] - t[0]) ** 2 + (o[1] - t[1]) ** 2) / 2
    return f"{error:.9f} {o[0]:.9f}  {o[1]:.9f}"


def test_the_worked_example_has_every_figure_to_nine_digits() -> None:
    """After 100 steps, nightly after the tutorial's 10,000: those of the formulas in Python."""
    steps = 10_000 if NIGHTLY else 100
    lines = run("worked_2_2_2.py", "--steps", str(steps)).splitlines()
    explanation = next(
        i for i, line in enumerate(lines) if line.startswith("The last three differ")
    )
    first, second = lines[1 : explanation - 1], lines[explanation + 1 :]
    off = [line.split("  ")[0].strip() for line in first if DIFFERS in line]
    assert off == ["E after 1", f"E, {steps}", f"o, {steps}"]
    assert sum(DIFFERS not in line for line in first) == 9
    for text, as_printed in (("\n".join(first), False), ("\n".join(second), True)):
        for printed in (by_hand(1, as_printed=as_printed).split()[0],
                        *by_hand(steps, as_printed=as_printed).split(" ", 1)):  # fmt: skip
            assert printed in text
    assert DIFFERS not in next(line for line in second if line.startswith("E after 1"))


def test_the_formulas_of_the_worked_example_have_the_figures_of_the_tutorial() -> None:
    """The tutorial's own figures result if w5 … w8 are changed too early."""
    assert by_hand(10_000, as_printed=False) == "0.000035102 0.015913620  0.984064274"
    assert by_hand(10_000, as_printed=True) == "0.000035085 0.015912196  0.984065734"
    assert by_hand(1, as_printed=False).startswith("0.291027774 ")
    assert by_hand(1, as_printed=True).startswith("0.291027924 ")


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
