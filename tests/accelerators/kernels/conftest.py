from accelerators.kernels.networks import few_threads  # noqa: F401
from accelerators.kernels.reference import _in_use, dtype, machine, tuned_by  # noqa: F401
