"""All measurements on a GPU, by one command, within a given time.

    python -m benchmarks.gpu [PART …] [--minutes 12] [--output benchmarks/results]

Parts that need no quiet machine come first, all at once, in their own processes; then the
benchmarks, one after the other, the shortest first. Each part runs whatever the result of the one
before, and writes its results at once, so that an interruption costs only the current part. A page,
``gpu_DEVICE.md`` (DEVICE is a name like nvidia_h200), lists what passed, what is slower than a peer
and what was not reached.

With ``--minutes`` a part starts if at least half of its expected time is left, and is stopped in
time for the others. ``--backend numpy --quick`` tries the command on any machine.

``python -m benchmarks.gpu tune`` measures the choice of tiles, see `benchmarks.gpu.tuning`;
``… launches`` counts the launches of recorded steps, ``… roofline`` says what each must take.
"""
