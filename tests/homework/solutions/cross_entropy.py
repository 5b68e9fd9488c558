from xbp import nn


class CrossEntropyLoss(nn.Loss):
    """The mean over samples of -log p_label, with p = softmax(z)."""

    def __call__(self, prediction, target):
        xp = self.namespace(prediction, target)
        n, classes = prediction.shape
        columns = xp.arange(classes, device=prediction.device)
        t = xp.astype(xp.expand_dims(target, axis=1) == columns, prediction.dtype)
        z = prediction - xp.max(prediction, axis=1, keepdims=True)
        log_sum = xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
        log_p = z - log_sum
        value = -xp.sum(t * log_p) / n
        gradient = (xp.exp(log_p) - t) / n
        return value, gradient
