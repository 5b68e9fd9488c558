"""Export to ONNX files, which many runtimes run without Python or xbp.

For weights alone, `xbp.training.save_weights` and `load_weights` exchange safetensors files with
other programs, with PyTorch's names and shapes.
"""

from xbp.exchange.export import Exported, to_onnx
from xbp.exchange.step import ExportedStep, export_training_step

__all__ = ["Exported", "ExportedStep", "export_training_step", "to_onnx"]
