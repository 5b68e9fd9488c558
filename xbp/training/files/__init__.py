"""Files of a training: weights, checkpoints, and files that appear whole or not at all."""

from xbp.training.files.writing import check_writable, replacing, write_text

__all__ = ["check_writable", "replacing", "write_text"]
