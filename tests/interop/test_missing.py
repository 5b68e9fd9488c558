"""Without PyTorch one sentence says what is needed."""

import importlib
import sys

import pytest

from xbp.errors import BackendError


def test_without_pytorch_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "xbp.interop.torch", raising=False)
    with pytest.raises(BackendError, match=r"needs PyTorch \(.*\); pip install torch$"):
        importlib.import_module("xbp.interop.torch")
