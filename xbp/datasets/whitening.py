"""Kernels that whiten small patches of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import described
from xbp.backend import as_numbers
from xbp.errors import InputError

PATCH = 2
"""Rows and columns of a patch."""


def whitening(images: Any, eps: float) -> NDArray[np.float64]:
    """Kernels (24, 3, 2, 2) that whiten patches of 2 × 2 pixels, and their negatives.

    With patches p as vectors, covariance E[p pᵀ] = Q Λ Qᵀ and kernels q_i/√(λ_i + eps), the results
    q_iᵀ p/√(λ_i + eps) are uncorrelated, with variances λ_i/(λ_i + eps).
    """
    x = as_numbers(images)
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or min(x.shape[2:]) < PATCH:
        msg = f"whitening needs images (N, 3, H, W), got {described(images)}"
        raise InputError(msg)
    x = x.astype(np.float64)
    patches = np.lib.stride_tricks.sliding_window_view(x, (PATCH, PATCH), axis=(2, 3))
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH**2)
    variances, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    # Largest variance first; a sign that does not depend on the machine.
    order = np.argsort(-variances)
    kernels = (vectors / np.sqrt(np.maximum(variances, 0) + eps))[:, order].T
    largest = np.take_along_axis(kernels, np.abs(kernels).argmax(axis=1)[:, None], axis=1)
    kernels = kernels * np.sign(largest)
    whole: NDArray[np.float64] = np.concatenate([kernels, -kernels])
    return whole.reshape(-1, 3, PATCH, PATCH)
