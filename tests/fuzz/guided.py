"""Mutation guided by coverage: the readers of all files under Atheris, where it is installed.

    python tests/fuzz guided -max_total_time=60 FOLDER

with any options of libFuzzer, which keeps its files in the folder. The first byte of an input
chooses the reader. Anything but a refusal by xbp is a crash, which libFuzzer writes to a file;
``python tests/fuzz guided FILE`` runs it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def main(parser: argparse.ArgumentParser) -> int:
    try:
        import atheris
    except ImportError:
        parser.error("guided mutation needs Atheris: pip install atheris")
    with atheris.instrument_imports(include=["xbp"]):
        from fuzz import subjects
        from xbp.errors import XBPError
    with tempfile.TemporaryDirectory() as name:
        kinds, path = subjects.subjects(Path(name)), Path(name, "case")

        def one(data: bytes) -> None:
            path.write_bytes(data[1:])
            with suppress(XBPError):
                kinds[data[0] % len(kinds) if data else 0].load(path)

        folders = [Path(word) for word in sys.argv[1:] if Path(word).is_dir()]
        for number, kind in enumerate(kinds if folders else ()):
            (folders[0] / f"seed{number}").write_bytes(bytes([number]) + kind.content)
        atheris.Setup(sys.argv, one)
        atheris.Fuzz()
    return 0
