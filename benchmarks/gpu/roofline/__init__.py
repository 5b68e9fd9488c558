"""What each launch of a recorded training step computes and moves, and what that must take.

    python -m benchmarks.gpu roofline lenet5-train vgg --batch 128
    python -m benchmarks.gpu roofline gpt --compile     registers and shared memory, by nvcc

Without a GPU the launches are those that a recorded step would make on an H200, found by a run on
numpy arrays that computes nothing. On a GPU each kernel is timed as well, by PyTorch's profiler,
in replays of the recorded step.

FLOP are the multiplications and additions of matrix products and convolutions, computed directly;
bytes are those of all arrays that a launch reads or writes, once each, which no cache can save. The
least time is that of FLOP or bytes at the device's peaks, or of an empty kernel in a graph,
whichever is longest, and so says what a launch is bound by.
"""
