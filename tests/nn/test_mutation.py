from catalogue import CASES
from mutation import run


def test_every_broken_backward_is_caught() -> None:
    results = list(run())
    classes = {what.split(":")[0].rpartition(".")[2] for what, _ in results}
    # An activation's chain rule is Elementwise's, a regression loss's scale RegressionLoss's.
    assert classes - {"Elementwise", "RegressionLoss"} == {case.kind for case in CASES}
    assert [what for what, caught in results if not caught] == []
