"""Break the code on purpose, in one place at a time, and count what the tests catch.

    python tests/mutation                     everything, on two cores; some minutes
    python tests/mutation nn.conv images.c    only what has one of these in its name
    python tests/mutation --sample 200 .c .h  200 of those, drawn at random
    python tests/mutation --sample 40         40 of those that are caught, for a quick look

A fault is one small wrong change (`faults` lists the kinds) in a function that computes: forward,
backward, primitive, initializer, random bits, loss, update rule, schedule, accelerator. It is
caught if a test of the ordinary suite fails, crashes or hangs with it; the tests that are tried are
those that run the broken function, the fastest first. No test against PyTorch is among them: the
suite must do without.

A fault that no test catches is a gap in the tests, to be closed, or changes nothing that anyone
could see. Those of the second kind are in survivors.toml, with their reasons. Two scores are
printed: of all faults, and of those that change something. The command exits with 1 if another one
survives, if one of them is caught after all, or if one is no more there.
"""
