"""Break the code on purpose, in one place at a time, and count what the tests catch.

    python tests/mutation                     everything; hours
    python tests/mutation nn.conv pool.c      only what has one of these in its name
    python tests/mutation --near nn.conv      by the tests nearest to it alone; a few minutes
    python tests/mutation --sample 200 .c .h  200 of those, drawn at random
    python tests/mutation --sample 40         40 of those that are caught, for a quick look
    python tests/mutation --remove-stale      listed survivors whose code is no more there

A fault is one small wrong change (`faults` lists the kinds) in a function that computes: forward,
backward, primitive, initializer, random bits, loss, update rule, schedule, accelerator, step of a
training (`modules` says which are left out). It is caught if a test of the ordinary suite fails,
crashes or hangs with it; the tests that are tried are those that run the broken function, those
that caught the most first. No test against PyTorch is among them: the suite must do without.

With names, a few parameters of each of the tests nearest to these modules come first; the rest of
these and some of the modules' folders see only what those let pass, and all others what is then
left. --near stops before these, collects only files that may have near tests, spends at most 20
seconds of tests on a fault, and does not plant listed survivors.

stderr says how far it is; Ctrl-C ends it with what was found so far.

A fault that no test catches is a gap in the tests, to be closed, or changes nothing that anyone
could see. Those of the second kind are in survivors.toml, with their reasons. Two scores are
printed: of all faults, and of those that change something. The command exits with 1 if another one
survives, if one of them is caught after all, or if one is no more there.
"""
