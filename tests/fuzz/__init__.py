"""Mutated checkpoints, weights, JSON and IDX files: each is refused in one sentence, or loads.

    python tests/fuzz --cases 10000             # seeded: the same ones each time
    python tests/fuzz --only 4711               # one of them again, with its traceback

What loads although it was mutated must be what it was before, wherever the format has a checksum.
A crash, a hang, any other exception or too much memory ends the process: exit status 1 or more.
"""
