"""The version of xbp; the only thing that every room may know of the whole."""

__version__ = "0.1.0"
