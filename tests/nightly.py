"""Whether this is a nightly run, by the environment: `HYPOTHESIS_PROFILE=nightly`.

What is long runs then; a short form of it runs by default, and fails for the same faults.
"""

import os

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
