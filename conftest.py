"""Plugins that the tests need: pytest's own for testing plugins, and that of xbp.

Where xbp is installed pytest has found xbp's by itself; this is for a checkout that is not.
"""

from importlib.util import find_spec

pytest_plugins = ["pytester", "pytest_xbp"]

collect_ignore_glob = [] if find_spec("ndonnx") else ["xbp/exchange/*.py"]  # no doctests there
