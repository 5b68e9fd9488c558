from accelerators.kernels.reference import _in_use, dtype, machine, tuned_by  # noqa: F401
