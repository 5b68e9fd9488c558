"""``python -m xbp``: the command line, where its script is not installed."""

from xbp.cli import main

if __name__ == "__main__":
    main()
