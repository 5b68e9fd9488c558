"""``xbp``, ``xbp --help``, ``xbp --version``, ``xbp info``."""

import importlib.metadata
import platform
import re
import warnings

import pytest
import typer
from cli.running import Result, fresh, options

import xbp
from xbp.backend import LIBRARIES, why_unavailable
from xbp.cli import COMMANDS, app, drivers


class TestInfo:
    def test_version(self, command):
        assert command("--version") == Result(0, f"xbp {xbp.__version__}\n", "")

    def test_without_a_command(self, command):
        result = command()
        assert (result.code, result.out) == (2, command("--help").out)

    def test_a_command_that_there_is_not(self, command):
        result = command("inf")
        assert result.code == 2
        assert "No such command 'inf'." in result.err
        if hasattr(typer.main.get_command(app), "suggest_commands"):  # not yet in 0.15.4
            assert "Did you mean 'info'?" in result.err

    @pytest.mark.parametrize("name", COMMANDS)
    def test_the_list_of_commands_says_what_each_says_of_itself(self, name):
        group = typer.main.get_command(app)
        own, _, _ = group.get_command(None, name).help.partition("\n\n")
        assert " ".join(own.split()) == COMMANDS[name][2]

    @pytest.mark.parametrize(
        ("args", "parts"),
        [
            (["--help"], ["train", "info", "--version"]),
            (["train", "-h"], ["lenet5"]),
            (
                ["train", "lenet5", "--help"],
                ["--backend", "--epochs", "0.004", "runs/lenet5", "XBP_BACKEND"],
            ),
        ],
    )
    def test_help(self, command, args, parts):
        result = command(*args)
        assert (result.code, result.err) == (0, "")
        for part in parts:
            assert part in result.out

    def test_info(self, command):
        result = command("info")
        assert (result.code, result.err) == (0, "")
        for name in ("numpy", "array-api-compat", "safetensors"):
            assert re.search(rf"{name} +{importlib.metadata.version(name)}\b", result.out)
        assert re.search(rf"xbp +{re.escape(xbp.__version__)}\b", result.out)
        assert platform.python_version() in result.out
        for name in LIBRARIES:
            reason = why_unavailable(name)
            usable = "no" if reason else "yes"
            assert re.search(rf"^ +{name} +{usable}\b", result.out, re.MULTILINE)
            if reason:
                assert f"{name}: {reason}\n" in result.out  # complete, on one line
        assert re.search(r"numpy +yes +cpu\b", result.out)

    @pytest.mark.parametrize(
        "content",
        ["raise RuntimeError('odd')", "raise SystemExit('odd')", "raise ImportError('odd')", ""],
    )
    def test_broken_cupy(self, tmp_path, content):
        """With any failure of CuPy's import, numpy works and the reason is given."""
        (tmp_path / "cupy.py").write_text(content)
        (tmp_path / "torch.py").write_text("raise ImportError('not today')")
        result = fresh("info", first_path=tmp_path, XBP_BACKEND="no-such")
        assert (result.code, result.err) == (0, ""), result
        assert re.search(r"numpy +yes +cpu\b", result.out)
        assert re.search(r"cupy +no\b", result.out)
        reason = next(line for line in result.out.splitlines() if line.startswith("cupy: "))
        assert "'cupy' backend" in reason
        assert "install" in reason
        assert "odd" in reason or not content

    def test_devices_and_what_is_wrong_with_them(self, command, monkeypatch):
        """Stand-ins for two GPUs and a wheel that is too new for their driver."""
        gpus = (
            drivers.Device("Imagined GPU", (9, 0), 140 * 2**30),
            drivers.Device("Another one", (8, 6), 24 * 2**30),
        )
        facts = drivers.Facts(
            drivers.Driver(12040, devices=gpus), wheels={"cupy-cuda13x": "14.2.0"}
        )
        monkeypatch.setattr(drivers, "look", lambda: facts)
        result = command("info")
        assert (result.code, result.err) == (0, "")
        assert re.search(r"CUDA of the driver +up to 12\.4\b", result.out)
        lines = result.out.splitlines()
        assert "cuda:0: Imagined GPU, compute capability 9.0, 140 GiB" in lines
        assert "cuda:1: Another one, compute capability 8.6, 24 GiB" in lines
        assert [f"GPU: {line}" for line in drivers.diagnose(facts)] == lines[-1:]

    def test_nothing_is_wrong_without_a_gpu(self, command, monkeypatch):
        monkeypatch.setattr(drivers, "look", drivers.Facts)
        result = command("info")
        assert not re.search("^(GPU|cuda)", result.out, re.MULTILINE)
        assert "CUDA of the driver" not in result.out

    def test_two_wheels_warn_in_a_sentence_only(self, command, monkeypatch, recwarn):
        def find(name):
            warnings.warn("\n----\n\n  CuPy may not function correctly because …", stacklevel=1)
            return xbp.get_backend()

        wheels = {"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}
        monkeypatch.setattr(drivers, "look", lambda: drivers.Facts(wheels=wheels))
        monkeypatch.setattr("xbp.cli.info.LIBRARIES", {"torch": None})
        monkeypatch.setattr("xbp.cli.info.find_backend", find)
        result = command("info")
        assert (result.code, result.err) == (0, "")
        assert "GPU: cupy-cuda12x and cupy-cuda13x are installed at once" in result.out
        assert not recwarn

    def test_facts_of_a_cupy_that_works(self, command, monkeypatch):
        device = "Imagined GPU, compute capability 9.0"
        facts = {"device": device, "driver": "580.1", "CUDA runtime": "13.2"}
        monkeypatch.setattr("xbp.cli.info.LIBRARIES", {"cupy": None})
        monkeypatch.setattr("xbp.cli.info.find_backend", lambda name: xbp.get_backend())
        monkeypatch.setattr("xbp.cli.info.facts_of", lambda name: facts)
        result = command("info")
        assert f"cupy: device {device}, driver 580.1, CUDA runtime 13.2\n" in result.out
        assert "cupy: kernels are divided by " in result.out and " measured choices" in result.out

    def test_terminal_without_unicode(self, small, tmp_path):
        result = fresh(*options(small, tmp_path, epochs=1), PYTHONIOENCODING="ascii")
        assert (result.code, result.err) == (0, "")
        assert "61,706" in result.out
