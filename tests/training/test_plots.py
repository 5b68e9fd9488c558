"""Figures of learning curves and of confusion matrices."""

import numpy as np
import pytest
from cli.running import fresh

from xbp.training import History


class TestPlots:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_learning_curves(self):
        from xbp.training.plots import plot_learning_curves

        history = History()
        history.records = [
            {"epoch": 1, "lr": 1.0, "loss": 2.0, "accuracy": 0.5, "val_loss": 3.0},
            {"epoch": 2, "lr": 1.0, "loss": 1.0, "accuracy": 0.75},  # interrupted
        ]
        loss, accuracy = plot_learning_curves(history).axes
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss")
        assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy")
        curves = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
        assert curves == {"training": [[1, 2], [2, 1]], "validation": [[1, 3]]}
        assert [text.get_text() for text in accuracy.get_legend().texts] == ["training"]

    @pytest.mark.parametrize("classes", [1, 2, 10, 47])
    def test_confusion_matrix(self, classes, tmp_path):
        from xbp.training.plots import plot_confusion_matrix

        matrix = np.diag(np.full(classes, 20))
        matrix[0, -1] += 3
        figure = plot_confusion_matrix(matrix)
        axes = figure.axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
        if classes == 10:
            cells = {text.get_position(): text.get_text() for text in axes.texts}
            assert cells == {(9, 0): "3"} | {(i, i): "20" for i in range(10)}
            assert axes.get_title() == "3 of 203 wrong"
        figure.savefig(tmp_path / "matrix.png")

    def test_no_global_state(self):
        """No pyplot and no choice of backend, so that a notebook's figures are unaffected."""
        statements = """
import sys
import numpy as np
from xbp.training.plots import plot_confusion_matrix
plot_confusion_matrix(np.eye(2, dtype=int))
print("matplotlib.pyplot" in sys.modules)
"""
        assert fresh(python=statements).out == "False\n"
