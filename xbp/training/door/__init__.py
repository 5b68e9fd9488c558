"""Checks of the arguments of a training, before its first step."""
