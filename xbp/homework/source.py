"""Where pip finds xbp for students and their workflow, as long as no package index has it."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from xbp._version import __version__
from xbp.errors import InputError
from xbp.paths import open_file, same_place
from xbp.training.files import replacing

NAME = "xbackprop"
PURE = "-none-any.whl"
ADDRESS = re.compile(r"""(git\+)?(https?|ssh|file)://[^\s"'$`\\]+""")


class Source(NamedTuple):
    """What pip is given, and the wheel that is to lie beside the exercises."""

    requirement: str
    wheel: Path | None = None
    note: str = ""
    """What is left to do by hand."""

    def copied(self, folder: Path) -> list[Path]:
        """Copy the wheel into the folder, unless it lies there; the copy, if any."""
        if self.wheel is None or same_place(self.wheel, folder / self.wheel.name):
            return []
        copy = folder / self.wheel.name
        with replacing(copy) as temporary:
            shutil.copyfile(self.wheel, temporary)
        return [copy]


def given(source: str) -> Source:
    """The source that a teacher names: an address, or a wheel.

    Raises
    ------
    InputError
        It is neither ``git+https://…``, nor the address of a wheel, nor a wheel for any system.
    """
    if ADDRESS.fullmatch(source) and (source.startswith("git+") or source.endswith(".whl")):
        return Source(source)
    wheel = Path(source)
    if not (wheel.name.startswith(f"{NAME}-") and wheel.name.endswith(PURE)):
        msg = (
            f"students need xbp from git+https://… or a wheel for any system, {NAME}-…{PURE} "
            f"(in a checkout: XBP_PURE=1 python -m pip wheel --no-deps .), got {source!r}"
        )
        raise InputError(msg)
    open_file(wheel, "a wheel of xbp").close()
    return Source(f"./{wheel.name}", wheel)


def installed() -> Source:
    """The source of this installation, as pip has recorded it (PEP 610); else a wheel to be added.

    An installation without a record is from an index.
    """
    try:
        record = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        record = {"dir_info": {}}
    if not record:
        return Source(f"{NAME}=={__version__}")
    url, place = record.get("url", ""), urlsplit(record.get("url", ""))
    if (vcs := record.get("vcs_info", {})).get("vcs") == "git":
        at = f"git+{url}@{vcs['commit_id']}"
        if place.scheme != "file" and ADDRESS.fullmatch(at):
            return Source(at)
    elif "archive_info" in record and url.endswith(PURE):
        wheel = Path(url2pathname(place.path))
        if place.scheme != "file" and ADDRESS.fullmatch(url):
            return Source(url)
        if wheel.is_file():
            return Source(f"./{wheel.name}", wheel)
    name = f"{NAME}-{__version__}{PURE.replace('-none', '-py3-none')}"
    return Source(
        f"./{name}",
        note=f"no package index has xbp: put {name} into the folder (in a checkout of xbp: "
        "XBP_PURE=1 python -m pip wheel --no-deps -w FOLDER .), or write the folder with "
        "--xbp git+https://…",
    )
