"""Plugins that the tests need: pytest's own for testing plugins, and that of xbp.

Where xbp is installed pytest has found xbp's by itself; this is for a checkout that is not.
"""

pytest_plugins = ["pytester", "pytest_xbp"]
