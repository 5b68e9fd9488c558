"""Mutated checkpoints, weights, JSON and IDX files: each is refused in one sentence, or loads.

    python tests/fuzz --cases 10000             # seeded: the same cases each time
    python tests/fuzz --only 4711               # one of them again, with its traceback
    python tests/fuzz differential              # beside other readers; see differential.py
    python tests/fuzz guided FOLDER             # guided by coverage, with Atheris; see guided.py

If the format has a checksum, a mutated file that loads must have its original content. A crash, a
hang, any other exception or too much memory ends the process: exit status 1 or more.
"""
