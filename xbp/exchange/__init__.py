"""Models for others: ONNX files, which many runtimes run without Python or xbp.

Weights alone travel as safetensors, both ways: `xbp.training.save_weights` and `load_weights`, in
the names and shapes of PyTorch.
"""

from xbp.exchange.export import Exported, to_onnx

__all__ = ["Exported", "to_onnx"]
