"""What is written of a training, and read again: weights, checkpoints, and any file, whole."""

from xbp.training.files.writing import check_writable, replacing, write_text

__all__ = ["check_writable", "replacing", "write_text"]
