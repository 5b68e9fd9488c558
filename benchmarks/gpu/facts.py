"""Versions and the device of a backend, as JSON.

This is a process of its own, as a process that uses a GPU holds some of its memory until the end.
"""

from __future__ import annotations

import json
import sys

from xbp.machine import facts_of, surroundings


def main() -> None:
    print(json.dumps(facts_of(sys.argv[1]) | surroundings()))


if __name__ == "__main__":
    main()
