"""Where the folder of exercises says that xbp comes from."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import xbp
from xbp.cli import app
from xbp.errors import InputError
from xbp.homework import source
from xbp.homework.source import given, installed

NAME = f"xbackprop-{xbp.__version__}-py3-none-any.whl"
GIT = {"url": "https://a.org/xbp.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
WHEEL: dict[str, Any] = {"archive_info": {}}


def recorded(monkeypatch: pytest.MonkeyPatch, record: Any) -> None:
    """What pip would have recorded of this installation; None is not installed."""

    def distribution(name: str) -> Any:
        if record is None:
            raise PackageNotFoundError(name)
        return SimpleNamespace(read_text=lambda file: record and json.dumps(record))

    monkeypatch.setattr(source, "distribution", distribution)


def wheel_in(folder: Path, name: str = NAME) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"a wheel")
    return folder / name


@pytest.mark.parametrize(
    ("record", "requirement", "known"),
    [
        ({}, f"xbackprop=={xbp.__version__}", True),  # from an index
        (GIT, f"git+https://a.org/xbp.git@{'0' * 40}", True),
        (GIT | {"url": "file:///home/a/xbp"}, f"./{NAME}", False),
        (GIT | {"url": "https://${TOKEN}@a.org/xbp.git"}, f"./{NAME}", False),
        (WHEEL | {"url": f"https://a.org/{NAME}"}, f"https://a.org/{NAME}", True),
        (WHEEL | {"url": f"file:///gone/{NAME}"}, f"./{NAME}", False),
        (WHEEL | {"url": "file:///xbackprop-0.1.0-py3-none-win_amd64.whl"}, f"./{NAME}", False),
        ({"url": "file:///home/a/xbp", "dir_info": {}}, f"./{NAME}", False),
        (None, f"./{NAME}", False),
    ],
)
def test_the_source_is_that_of_this_installation(
    record: Any, requirement: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(monkeypatch, record)
    found = installed()
    assert found.requirement == requirement
    assert found.wheel is None
    assert bool(found.note) != known
    assert known or ("XBP_PURE=1" in found.note and NAME in found.note)


def test_a_wheel_that_was_installed_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = wheel_in(tmp_path / "a folder")
    recorded(monkeypatch, WHEEL | {"url": file.as_uri()})
    folder = tmp_path / "homework"
    done = CliRunner().invoke(app, ["homework", "new", str(folder), "--exercise", "mse"])
    assert done.exit_code == 0, done.output
    assert (folder / NAME).read_bytes() == b"a wheel"
    assert NAME in done.output and "no package index" not in done.output


@pytest.mark.parametrize("address", ["git+https://a.org/xbp.git@main", f"https://a.org/{NAME}"])
def test_an_address_is_written(address: str, tmp_path: Path) -> None:
    new = ["homework", "new", str(tmp_path), "--exercise", "mse", "--xbp", address]
    done = CliRunner().invoke(app, new)
    assert done.exit_code == 0, done.output
    for name in ("README.md", ".github/workflows/homework.yml"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert f'python -m pip install "{address}" array-api-strict' in text
    assert "no package index" not in done.output


def test_a_wheel_in_the_folder_stays(tmp_path: Path) -> None:
    file = wheel_in(tmp_path)
    assert given(str(file)).copied(tmp_path) == []
    assert given(str(file)).requirement == f"./{NAME}"
    assert file.read_bytes() == b"a wheel"


def test_without_a_source_the_command_says_what_is_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(monkeypatch, {"url": "file:///home/a/xbp", "dir_info": {}})
    done = CliRunner().invoke(app, ["homework", "new", str(tmp_path), "--exercise", "mse"])
    assert done.exit_code == 0
    assert f"put {NAME} into the folder" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "xbackprop",
        "https://a.org/xbp.git",
        'git+https://a.org/"; rm -r .',
        "git+https://a.org/$(id)",
        "xbackprop-0.1.0-py3-none-manylinux_2_28_x86_64.whl",
        "xbackprop-0.1.0.tar.gz",
        NAME,  # not there
    ],
)
def test_any_other_source_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        given(wrong)
    assert "\n" not in str(caught.value)
    folder = tmp_path / "homework"
    done = CliRunner().invoke(app, ["homework", "new", str(folder), "--xbp", wrong])
    assert done.exit_code == 2
    assert not folder.exists()
