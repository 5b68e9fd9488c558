"""What is to be shown on a GPU, by one command, in the time that there is.

    python -m benchmarks.gpu [PART …] [--minutes 12] [--output benchmarks/results]

First what needs no quiet machine, all at once in processes of their own; then the benchmarks, one
after the other, the shortest first. Each part goes on whatever became of the last, and writes what
it finds at once, so that an end at any time costs only what is at work. A page says what passed,
what is slower than a peer and what was not reached: ``gpu_DEVICE.md``, DEVICE as in nvidia_h200.

With ``--minutes`` a part starts if about half of the time that it takes is left, and is stopped in
time for the rest. ``--backend numpy --quick`` tries the command anywhere.
"""
