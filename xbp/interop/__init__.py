"""Ways to the libraries that a user has already: `xbp.interop.torch`.

Each is a module of its own, so that nothing is imported that was not asked for.
"""
