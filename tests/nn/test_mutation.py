from catalogue import CASES
from mutation import run

from xbp import nn


def test_every_broken_backward_is_caught() -> None:
    results = list(run())
    classes = {what.split(":")[0].rpartition(".")[2] for what, _ in results}
    # An activation's chain rule is Elementwise's or Gated's, a regression loss's scale
    # RegressionLoss's; beside it, each kind has a formula of its own, or inherits one (SELU).
    classes -= {"Elementwise", "Gated", "RegressionLoss"}
    for kind in {case.kind for case in CASES}:
        assert classes & {base.__name__ for base in getattr(nn, kind).__mro__}, kind
    assert [what for what, caught in results if not caught] == []
