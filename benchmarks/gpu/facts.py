"""What is known about a backend's device and the versions, as JSON: a process of its own, since
whoever asks a GPU holds memory of it until its end.
"""

from __future__ import annotations

import json
import sys

from xbp.machine import facts_of, surroundings


def main() -> None:
    print(json.dumps(facts_of(sys.argv[1]) | surroundings()))


if __name__ == "__main__":
    main()
