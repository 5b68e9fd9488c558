"""Cross-entropy with an additional class for everything else."""

from __future__ import annotations

from xbp.arguments import number
from xbp.backend import Array, array_namespace
from xbp.nn import CrossEntropyLoss
from xbp.primitives import cross_entropy
from xbp.primitives.cross_entropy import one_hot


class RejectingCrossEntropyLoss(CrossEntropyLoss):
    """L_n = -z_label + log(e^-j + Σ_c e^z_c): cross-entropy with a rejection class of logit -j.

    With the penalties y = -z this is the discriminative criterion of LeCun, Bottou, Bengio &
    Haffner 1998, eq. 9, which calls the class "rubbish". It pulls the penalty of the right class
    towards 0 as long as it is above j, even if all others are higher, and ignores penalties far
    above j. The gradient is p - t, with p_c = e^z_c / (e^-j + Σ_c e^z_c), which sum to less than 1:
    the gradient for C + 1 classes without the column of the last one, whose logit is constant.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        Over the samples.
    penalty : float, default 1
        j, the penalty of the rejection class.

    Notes
    -----
    `prediction` holds z = -y; the rest is as for `CrossEntropyLoss`, labels and errors too.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.models import lenet1998
    >>> loss = lenet1998.RejectingCrossEntropyLoss(penalty=0.0)
    >>> value, gradient = loss(np.array([[0.0, 0.0]]), np.array([1]))
    >>> round(float(value), 6), gradient.round(6).tolist()  # of three classes that are equal
    (1.098612, [[0.333333, -0.666667]])
    """

    def __init__(self, reduction: str = "mean", *, penalty: float = 1.0) -> None:
        super().__init__(reduction)
        self.penalty = number("penalty", penalty)
        self.rubbish = -self.penalty  # its logit; the name is part of checkpoints

    def compute(self, logits: Array, target: Array, scale: float) -> tuple[Array, Array]:
        xp = array_namespace(logits)
        if target.ndim == 1:  # one-hot among C classes; a label of C is out of range
            target = one_hot(xp, target, logits.shape[1], logits.dtype)
        column = xp.zeros((logits.shape[0], 1), dtype=logits.dtype, device=logits.device)
        z = xp.concat([logits, column + self.rubbish], axis=1)
        t = xp.concat([xp.astype(target, logits.dtype), column], axis=1)
        value, gradient = cross_entropy(z, t, scale)
        return value, gradient[:, :-1]
