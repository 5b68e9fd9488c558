from accelerators.kernels.reference import _in_use, dtype, machine  # noqa: F401
