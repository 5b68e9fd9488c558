"""A loss whose best constant prediction is a quantile."""

from xbp import nn
from xbp.errors import InputError


class QuantileLoss(nn.RegressionLoss):
    """ℓ = ½|d| + (½ - q) d, where d = y - t (Koenker & Bassett 1978): (1 - q) d above, q |d| below.

    So ℓ′ = ½ sign(d) + ½ - q, and at the kink d = 0 the mean of both sides. `q` is the quantile,
    between 0 and 1; `reduction` and `factor` are those of every regression loss.
    """

    def __init__(self, q, reduction="mean", *, factor=1.0):
        super().__init__(reduction, factor=factor)
        if not 0 < q < 1:
            msg = f"q must be between 0 and 1, got {q!r}"
            raise InputError(msg)
        self.q = q

    def formula(self, xp, difference):
        tilt = 0.5 - self.q
        below = xp.where(difference < 0, -0.5, difference)  # CuPy's sign waits for the device
        slope = xp.where(difference > 0, 0.5, below) + tilt
        return 0.5 * xp.abs(difference) + tilt * difference, slope
