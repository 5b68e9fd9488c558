"""The CUDA kernels compiled by NVRTC for several architectures, which needs no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from accelerators.emulation import machine as emulation

import xbp
from xbp import models, nn, optim
from xbp.accelerators.cuda import dependent, launch
from xbp.accelerators.cuda.ahead import Program, programs
from xbp.nn.to_loss import forward_to_loss
from xbp.primitives.rounding import FORMATS

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")


@cache
def nvrtc() -> ctypes.CDLL | None:
    """NVRTC of NVIDIA's wheels, by ctypes, as CuPy may not be installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("**/libnvrtc.so.*"), reverse=True):
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # which NVRTC does not find by itself
            return ctypes.CDLL(str(path))
    return None


pytestmark = pytest.mark.skipif(nvrtc() is None, reason="no wheel nvidia-cuda-nvrtc is installed")


def compiled(file: str, macros: dict[str, Any], architecture: str, *more: str) -> str:
    """The PTX of a file that NVRTC compiles to machine code without a warning."""
    compiler, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert compiler is not None
    text = launch.source(file).encode()
    compiler.nvrtcCreateProgram(ctypes.byref(program), text, file.encode(), 0, None, None)
    given = [o.encode() for o in (*launch.options(macros), f"-arch={architecture}", *more)]
    failed = compiler.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * 99)(*given))
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    assert not failed and not log.value, log.value.decode()
    compiler.nvrtcGetCUBINSize(program, ctypes.byref(size))
    assert size.value
    compiler.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetPTX(program, ptx)
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode()


def wanted(dtype: str) -> dict[Program, set[str]]:
    """The kernels of a training step of LeNet-5 with a batch of 64, of a wide convolution and
    of recurrent layers; and the unused files."""

    def step() -> None:
        model = models.LeNet5(rng=0).astype(dtype)
        optimizer = optim.Adam(model.parameters())
        logits, backward = model.forward(np.zeros((64, 1, 28, 28), dtype), training=True)
        labels = np.arange(64, dtype=np.uint8) % 10
        nn.for_parameters(backward)(nn.CrossEntropyLoss()(logits, labels)[1])
        optimizer.step()
        block = nn.Sequential(nn.Conv2d(48, 64, 3, padding=1, rng=0, dtype=dtype), nn.ReLU())
        y, backward = block.forward(np.zeros((64, 48, 16, 16), dtype), training=True)
        backward(y)
        for activation in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh")):
            y, backward = activation().forward(y)
            backward(y)
            for x in (y, y[:, :, 0, 0]):
                norm = (nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d)(64, dtype=dtype)
                backward = nn.Sequential(norm, activation()).forward(x, training=True)[1]
                backward(x)
        for cell in (nn.RNN, nn.GRU, nn.LSTM):
            y, backward = cell(28, 128, rng=0, dtype=dtype).forward(np.zeros((128, 28, 28), dtype))
            backward(y)

        norm, x = nn.GroupNorm(2, 8, dtype=dtype), np.zeros((4, 8, 6, 6), dtype)
        norm.forward(x)[1](x)
        tokens = nn.Embedding(9, 8, rng=0).astype(dtype)
        y, backward = tokens.forward(np.zeros((2, 5), "int64"))
        backward(y)
        block = nn.TransformerBlock(8, 2, causal=True, rng=0, dtype=dtype)
        y, backward = block.forward(y)
        backward(y)
        y, backward = nn.Softmax().forward(y)
        backward(y)
        for name in FORMATS:
            with xbp.precision(name):
                nn.Linear(8, 4, dtype=dtype).forward(y)
                nn.Linear(512, 512).forward(np.zeros((256, 512), "f4"))

    def convolution() -> None:
        layer = nn.Conv2d(64, 128, 3, padding=1, rng=0, dtype=dtype)
        y, backward = layer.forward(np.zeros((64, 64, 8, 8), dtype), training=True)
        backward(y)

    def whole_networks() -> None:
        for model, shape in (
            (models.LeNet5(rng=0), (64, 1, 28, 28)),
            (models.LeNet5(activation="tanh", pool="average", rng=0), (64, 1, 28, 28)),
            (models.MLP(40, 36, 20, 10, rng=0), (300, 40)),
            (nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                           nn.Linear(96, 10)), (300, 1, 12, 12)),
        ):  # fmt: skip
            x, labels = np.zeros(shape, dtype), np.zeros(shape[0], np.uint8)
            y, backward = model.astype(dtype).forward(x, training=True)
            nn.for_parameters(backward)(y)
            forward_to_loss(model, nn.CrossEntropyLoss(), x, labels)

    pool = {"H": 7, "W": 6, "C": 2, "KH": 3, "KW": 2, "STRIDE_H": 2, "STRIDE_W": 1}
    pool |= {"PAD_H": 1, "PAD_W": 0, "ROWS": 4, "COLUMNS": 5}
    of_pools = (
        {"real": launch.REALS[dtype], "AVERAGE": average, "RELU": 0, **pool} for average in (0, 1)
    )
    with mock.patch.dict(os.environ, XBP_WHOLE="all", XBP_WINOGRAD="all"):
        of_whole = programs(whole_networks)
        fewer = programs(convolution)
    return {
        **programs(step),
        **fewer,
        **{program: names for program, names in of_whole.items() if "whole" in program[0]},
        ("philox.cu", ()): {"philox"},
        ("rows.cu", ()): {"take", "append"},
        **{("pooling.cu", tuple(macros.items())): {"pool"} for macros in of_pools},
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", launch.REALS)
def test_every_file_compiles(dtype: str, architecture: str) -> None:
    supported = (ctypes.c_int * 99)()
    nvrtc().nvrtcGetSupportedArchs(supported)  # type: ignore[union-attr]
    if int(architecture[3:]) not in supported:
        pytest.skip(f"this NVRTC knows no {architecture}")
    whole = architecture == "sm_90" and dtype == "float32"
    more = [dependent.OPTION] if dtype == "float64" else []
    seen = wanted(dtype)
    files = dict(list(seen))
    assert files.keys() == {path.name for path in Path(launch.__file__).parent.glob("*.cu")}
    for file, macros in seen if whole else files.items():
        ptx = compiled(file, dict(macros), architecture, *more)
        entries = set(re.findall(r"\.entry (\w+)", ptx))
        assert entries == set(emulation.kernels(launch.source(file)))
        assert seen[file, macros] <= entries
        # Sums in a fixed order (atomics count blocks alone); a thread's arrays stay in registers,
        # which needs indices that are known to the compiler; IEEE division and roots.
        counts = r"(?:\.relaxed\.gpu)?\.global\.inc\.u32"
        bad = rf"\b(?:atom(?!{counts})|(?<!bar\.)red|local|div\.approx|div\.full|sqrt\.approx)\b.*"
        found = re.findall(bad, ptx)
        assert found == [], (file, macros)
        waits = bool(more) and int(architecture[3:]) >= dependent.LEAST_CAPABILITY
        for body in ptx.split(".entry ")[1:]:
            before, *after = body.split("griddepcontrol.wait;")
            assert len(after) == body.count("griddepcontrol.launch_dependents;") == waits, file
            assert not waits or not re.search(r"\b(?:ld|st)\.(?!param)", before), file
