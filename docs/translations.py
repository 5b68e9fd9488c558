"""Compare the Chinese pages with the English ones that they translate.

    python docs/translations.py                          # what differs, or has changed since
    python docs/translations.py --renew learn/chain.md   # the page is translated as it is now

Renew a page after its Chinese text follows the English one again, or if a change of the English
words leaves their meaning as it was.
"""

from __future__ import annotations

import argparse
import sys

from _site.translations import differences, outdated, pages, renew


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renew", nargs="+", metavar="PAGE", default=[])
    options = parser.parse_args()
    unknown = sorted(set(options.renew) - set(pages()))
    if unknown:
        parser.error(f"no translation of {', '.join(unknown)}; there are {', '.join(pages())}")
    if options.renew:
        renew(options.renew)
    found = [text for page in pages() for text in (*differences(page), *outdated(page))]
    print(*found, f"{len(pages())} pages, {len(found)} differences", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
