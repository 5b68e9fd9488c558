"""``python -m benchmarks …`` from a checkout is ``xbp bench …``, whose harness is installed."""

import sys

from xbp.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
