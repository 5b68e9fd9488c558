"""Messages about broken GPU installations, with stand-ins for drivers, wheels and libraries."""

import ctypes
import sys

import pytest

from xbp.cli import drivers
from xbp.cli.drivers import Device, Driver, Facts, ask_driver, diagnose

H200 = Device("NVIDIA H200", (9, 0), 140 * 2**30)
V100 = Device("Tesla V100", (7, 0), 16 * 2**30)
NEW, OLD = {"cupy-cuda13x": "14.2.0"}, {"cupy-cuda12x": "14.2.0"}
BOTH = OLD | NEW
GPU13, GPU12 = Driver(13000, devices=(H200,)), Driver(12040, devices=(H200,))
PIP12, PIP13 = "pip install 'cupy-cuda12x[ctk]>=14'", "pip install 'cupy-cuda13x[ctk]>=14'"

# The installation, and the parts of the only message about it, in order.
CASES = {
    "two wheels, driver 13": (
        Facts(GPU13, wheels=BOTH),
        ["cupy-cuda12x and cupy-cuda13x are", "uninstall -y cupy-cuda12x cupy-cuda13x", PIP13],
    ),
    "two wheels, driver 12": (Facts(GPU12, wheels=BOTH), ["cupy-cuda12x and", PIP12]),
    "plain CuPy and a wheel": (
        Facts(GPU12, wheels={"cupy": "14.2.0"} | NEW),
        ["cupy and cupy-cuda13x are", "uninstall -y cupy cupy-cuda13x", PIP12],
    ),
    "three": (Facts(GPU13, wheels={"cupy": "1"} | BOTH), ["cupy, cupy-cuda12x and cupy-cuda13x"]),
    "for AMD": (
        Facts(GPU12, wheels={"cupy-rocm-7-0": "14.0"}),
        ["cupy-rocm-7-0 is for AMD's GPUs", "uninstall -y cupy-rocm-7-0", PIP12],
    ),
    "old CuPy": (
        Facts(GPU12, wheels={"cupy-cuda11x": "13.6.0"}),
        ["cupy-cuda11x 13.6.0 is too old", "CuPy 14", "uninstall -y cupy-cuda11x", PIP12],
    ),
    "old CuPy, newest driver": (
        Facts(Driver(14020, devices=(H200,)), wheels={"cupy-cuda12x": "13.6.0"}),
        ["cupy-cuda12x 13.6.0 is too old", PIP13],
    ),
    "old CuPy, older driver": (
        Facts(Driver(10020, devices=(H200,)), wheels={"cupy-cuda11x": "13.6.0"}),
        ["cupy-cuda11x 13.6.0 is too old", PIP13, "(cupy-cuda12x for CUDA 12)"],
    ),
    "odd version": (Facts(GPU12, wheels={"cupy": "unknown"}), ["cupy unknown is too old"]),
    "GPU without driver": (
        Facts(hardware=True),
        ["an NVIDIA GPU but no driver", "install NVIDIA's driver", "--gpus all"],
    ),
    "GPU without driver, with a wheel": (Facts(hardware=True, wheels=NEW), ["but no driver"]),
    "a wheel without anything": (Facts(wheels=NEW), ["neither an NVIDIA driver nor", "no harm"]),
    "driver 12 for CUDA 13": (
        Facts(GPU12, wheels=NEW),
        ["knows CUDA 12.4 at most", "cupy-cuda13x needs 13.0", "driver to 580", PIP12, "place"],
    ),
    "driver 11 for CUDA 12": (
        Facts(Driver(11080, devices=(H200,)), wheels=OLD),
        ["knows CUDA 11.8 at most", "cupy-cuda12x needs 12.0", "update the driver to 525 or later"],
    ),
    "hidden": (
        Facts(Driver(13000, 100, "CUDA_ERROR_NO_DEVICE"), wheels=NEW, visible=""),
        ["CUDA_VISIBLE_DEVICES is ''", "hides every GPU", "unset it, or set it to 0"],
    ),
    "hidden from a driver that counts none": (
        Facts(Driver(13000), wheels=NEW, visible="-1"),
        ["CUDA_VISIBLE_DEVICES is '-1'"],
    ),
    "driver without GPU": (
        Facts(Driver(13000, 100, "CUDA_ERROR_NO_DEVICE"), wheels=NEW),
        ["a driver but no GPU".replace("a driver", "an NVIDIA driver"), "nvidia-smi", "--gpus all"],
    ),
    "driver that counts none": (Facts(Driver(13000)), ["an NVIDIA driver but no GPU"]),
    "driver and module differ": (
        Facts(Driver(13000, 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), wheels=NEW),
        ["does not start (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)", "kernel module", "restart"],
    ),
    "NVSwitch": (
        Facts(Driver(13000, 802, "CUDA_ERROR_SYSTEM_NOT_READY"), wheels=NEW),
        ["does not start (CUDA_ERROR_SYSTEM_NOT_READY)", "nvidia-fabricmanager"],
    ),
    "unknown error": (
        Facts(Driver(13000, 999), wheels=NEW, visible="0"),
        ["does not start (999)", "nvidia-smi"],
    ),
    "GPU too old for CUDA 13": (
        Facts(Driver(13000, devices=(H200, V100)), wheels=NEW),
        ["cuda:1 (Tesla V100, compute capability 7.0)", "uninstall -y cupy-cuda13x", PIP12],
    ),
    "no CuPy": (Facts(GPU13), ["there is a GPU, and no CuPy", PIP13]),
    "no CuPy, driver 11": (
        Facts(Driver(11080, devices=(H200,))),
        ["no CuPy", PIP13, "(cupy-cuda12x for CUDA 12)"],
    ),
    "missing libraries": (
        Facts(GPU13, wheels=NEW, missing=("nvrtc", "cublas")),
        ["does not find nvrtc and cublas", "pip install 'cupy-cuda13x[ctk]==14.2.0'", "CUDA_PATH"],
    ),
    "one missing": (Facts(GPU13, wheels=NEW, missing=("nvrtc",)), ["does not find nvrtc of CUDA"]),
    "PyTorch for the CPU": (
        Facts(GPU13, wheels=NEW, torch=""),
        ["PyTorch was built without CUDA", "pytorch.org"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence(name):
    facts, parts = CASES[name]
    (line,) = diagnose(facts)
    assert "\n" not in line
    places = [line.find(part) for part in parts]
    assert -1 not in places, line
    assert places == sorted(places), line


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(torch="", visible=""),  # PyTorch for the CPU, on a machine without a GPU
        Facts(GPU13, wheels=NEW),
        Facts(GPU13, wheels=NEW, torch="12.8", visible="0"),
        Facts(GPU13, wheels=OLD),  # a newer driver serves older wheels
        Facts(GPU12, wheels=OLD, torch=None),
        Facts(GPU12, wheels={"cupy": "15.0.0"}),  # built by the user
        Facts(Driver(12000, devices=(V100,)), wheels=OLD),
        Facts(
            Driver(13000, devices=(Device("Turing", (7, 5), 1),)),
            wheels=NEW,
        ),
    ],
)
def test_nothing_is_wrong(facts):
    assert diagnose(facts) == []


def test_two_wheels_and_no_driver():
    both, idle = diagnose(Facts(wheels=BOTH))
    assert f"then {PIP13} (cupy-cuda12x for CUDA 12)" in both
    assert "no harm" in idle


def test_several_things_at_once():
    facts = Facts(GPU12, wheels=NEW, missing=("cublas",), torch="")
    lines = diagnose(facts)
    assert [line.split(" ", 2)[:2] for line in lines] == [
        *(["the", "driver"], ["CuPy", "does"], ["PyTorch", "was"]),
    ]


# --- asking the driver ---------------------------------------------------------------------------


class Library:
    """A stand-in for NVIDIA's C interface."""

    def __init__(self, devices=(), error=0, version=12040):
        self.devices, self.error, self.version = devices, error, version

    def cuDriverGetVersion(self, pointer):  # noqa: N802
        pointer._obj.value = self.version
        return 0

    def cuInit(self, flags):  # noqa: N802
        assert flags == 0
        return self.error

    def cuGetErrorName(self, error, pointer):  # noqa: N802
        pointer._obj.value = b"CUDA_ERROR_%d" % error

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = len(self.devices)

    def cuDeviceGet(self, pointer, index):  # noqa: N802
        pointer._obj.value = 40 + index

    def cuDeviceGetName(self, buffer, length, handle):  # noqa: N802
        assert length == len(buffer)
        buffer.value = self.devices[handle.value - 40].name.encode()

    def cuDeviceTotalMem_v2(self, pointer, handle):  # noqa: N802
        assert isinstance(pointer._obj, ctypes.c_size_t)  # an int would be too short
        pointer._obj.value = self.devices[handle.value - 40].memory

    def cuDeviceGetAttribute(self, pointer, attribute, handle):  # noqa: N802
        capability = self.devices[handle.value - 40].capability
        pointer._obj.value = {75: capability[0], 76: capability[1]}[attribute]


class TestDriver:
    @pytest.mark.parametrize(
        ("platform", "name"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll")]
    )
    def test_devices(self, monkeypatch, platform, name):
        monkeypatch.setattr(sys, "platform", platform)
        loaded = []
        driver = ask_driver(lambda path: loaded.append(path) or Library((H200, V100)))
        assert loaded == [name]
        assert driver == Driver(12040, devices=(H200, V100))
        assert (driver.version, driver.major) == ("12.4", 12)
        assert str(driver.devices[0]) == "NVIDIA H200, compute capability 9.0, 140 GiB"

    def test_none(self):
        def load(path):
            raise OSError(path)

        assert ask_driver(load) is None
        assert ask_driver(lambda path: object()) is None  # another library of this name

    def test_one_that_does_not_start(self):
        expected = Driver(12040, 803, "CUDA_ERROR_803")
        assert ask_driver(lambda path: Library(error=803)) == expected

    def test_a_very_old_one_has_no_names_for_errors(self, monkeypatch):
        monkeypatch.delattr(Library, "cuGetErrorName")
        assert ask_driver(lambda path: Library(error=999)) == Driver(12040, 999, "")


# --- what else is looked at ----------------------------------------------------------------------


def test_hardware(tmp_path):
    def device(name, vendor, kind):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")

    assert not drivers._hardware(tmp_path / "no bus")
    device("00", "0x8086", "0x030000")  # another vendor's display
    device("01", "0x10de", "0x040300")  # NVIDIA's sound
    (tmp_path / "02").mkdir()  # removed in between
    assert not drivers._hardware(tmp_path)
    device("03", "0x10de", "0x030200")
    assert drivers._hardware(tmp_path)


class TestLibraries:
    def test_those_that_are_not_found(self, monkeypatch):
        def load(name):
            if name != "cudart":
                raise OSError(name)

        package, finder = type(sys)("cuda"), type(sys)("cuda.pathfinder")
        finder.load_nvidia_dynamic_lib = load
        monkeypatch.setitem(sys.modules, "cuda", package)
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
        assert drivers._missing() == ("nvrtc", "cublas")

    def test_no_way_to_look(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
        assert drivers._missing() == ()

    @pytest.mark.parametrize(
        ("driver", "wheels", "looks"),
        [
            (GPU13, NEW, True),
            (GPU13, {}, False),
            (Driver(13000, 100), NEW, False),
            (None, NEW, False),
        ],
    )
    def test_only_next_to_a_gpu(self, monkeypatch, driver, wheels, looks):
        """Finding them means loading them, which takes a second."""
        monkeypatch.setattr(drivers, "ask_driver", lambda: driver)
        monkeypatch.setattr(drivers, "versions", lambda names: wheels)
        monkeypatch.setattr(drivers, "_missing", lambda: ("cublas",))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        facts = drivers.look()
        assert facts.missing == (("cublas",) if looks else ())
        assert (facts.driver, facts.wheels, facts.visible) == (driver, wheels, "7")


class TestTorch:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None", "13.0"),
            ("debug = False\ncuda = '12.8'\n", "12.8"),
            ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", ""),
            ("__version__ = '2'\n", None),
            (None, None),
        ],
    )
    def test_as_its_version_file_says(self, monkeypatch, tmp_path, text, found):
        if text is not None:
            (tmp_path / "version.py").write_text(text)
        spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})()
        monkeypatch.setattr(drivers.util, "find_spec", lambda name: spec)
        assert drivers._cuda_of_torch() == found

    def test_none(self, monkeypatch):
        monkeypatch.setattr(drivers.util, "find_spec", lambda name: None)
        assert drivers._cuda_of_torch() is None
        spec = type("Spec", (), {"origin": None})()  # a folder of that name
        monkeypatch.setattr(drivers.util, "find_spec", lambda name: spec)
        assert drivers._cuda_of_torch() is None

    def test_a_stand_in_without_a_spec(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
        assert drivers._cuda_of_torch() is None
