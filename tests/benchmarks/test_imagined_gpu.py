"""The harness with a stand-in for a GPU."""

import dataclasses

import pytest
from quickly import quick

from xbp.benchmarks import process, turns
from xbp.benchmarks.harness import Harness
from xbp.benchmarks.process import SideError
from xbp.benchmarks.tables import markdown, results
from xbp.benchmarks.worker import Worker, summary
from xbp.benchmarks.workloads import SIDES, WORKLOADS, takes_part


class TestImaginedGPU:
    """The harness with a GPU: a side that computes on numpy and answers like a GPU."""

    LINES = (
        "def held(self):",
        "    cls = type(self)",
        "    return {'most': 5_000_000, 'now': 7, 'device': 2**20 * (os.getpid() % 4096)}",
        "def launch(self, kernels, graph):",
        "    return lambda: None",
    )

    @pytest.fixture
    def gpu(self, side, monkeypatch):
        lines = [*self.LINES, "def wait(self, value):", "    pass"]
        imagined = side(lines, "xbp", options={"backend": "numpy", "trainer": True})
        monkeypatch.setitem(SIDES, "xbp", dataclasses.replace(SIDES[imagined], title="xbp"))
        return lambda **o: Harness(quick(**{"backend": "cupy", "batches": (64,)} | o), ["xbp"])

    @pytest.mark.parametrize("tf32", [False, True])
    def test_floors(self, gpu, tf32):
        with gpu(tf32=tf32) as harness:
            for name in ("sgemm", "copy", "launch", "lenet5-train"):
                harness.measure(name)
        assert harness.failures == []
        labels = [(row["workload"], row["label"]) for row in harness.rows]
        assert labels == [
            *(("sgemm", "float32"), ("sgemm", "TF32"), ("copy", "")),
            *(("launch", "1 kernel"), ("launch", "1 kernel, a graph")),
            *(("launch", "100 kernels"), ("launch", "100 kernels, a graph")),
            ("lenet5-train", "64"),
        ]
        found = results(harness)
        rows = {(row["workload"], row["label"]): row for row in found["rows"]}
        products, step = rows["sgemm", "TF32" if tf32 else "float32"], rows["lenet5-train", "64"]
        least = products["medians"]["xbp"] * step["flop"] / products["flop"]
        copying = rows["copy", ""]["medians"]["xbp"] * step["bytes"] / rows["copy", ""]["bytes"]
        assert step["floor"] == pytest.approx(max(least, copying))
        assert "| 100 kernels, a graph |" in markdown(found)

    def test_tf32_reaches_the_workers_of_its_row(self, gpu, monkeypatch):
        seen = []
        real = process.environment
        monkeypatch.setattr(
            process,
            "environment",
            lambda *args: seen.append(args[1].tf32) or real(*args),
        )
        with gpu() as harness:
            harness.measure("sgemm")
        assert seen == [False, False, True]  # the resident process, and one for each row

    def test_memory_is_what_the_driver_gave(self, gpu, monkeypatch):
        given = iter([100, 160])
        monkeypatch.setattr(Harness, "_on_device", lambda self: next(given))
        with gpu() as harness:
            harness.measure("memory")
        assert harness.rows[0]["costs"] == {"xbp": [60]}
        assert harness.rows[0]["held"]["xbp"][0]["most"] == 5_000_000
        assert "- xbp: of this 5 MB in the memory pool of its library" in markdown(results(harness))

    def test_on_device_asks_a_worker_that_was_there(self, gpu):
        with gpu() as harness:
            assert harness._on_device() == harness._on_device() > 0
            del harness.workers["xbp"]
            harness.measure("memory")
        assert harness.rows == []
        assert "neither takes part" in harness.failures[0]

    def test_kernels(self, gpu, side, monkeypatch):
        """The larger count of two processes, with and without a first use of the profiler."""
        with gpu() as harness:
            asked = []

            class Imagined:
                def __init__(self, *_):
                    self.early = False

                def ask(self, command, **job):
                    asked.append(command)
                    self.early |= command == "listen"
                    if command == "timeline":
                        if not self.early:
                            raise SideError("RuntimeError: the profiler saw nothing")
                        events = [{"cat": "kernel", "ts": 1.0, "dur": 3.0, "name": "gemm"}] * 8
                        return summary(events, 4)
                    return None

                def close(self):
                    pass

            monkeypatch.setattr(turns, "SideProcess", Imagined)
            harness.measure("kernels")
        assert asked == ["train", "timeline", "listen", "train", "timeline"]
        assert harness.rows[0]["costs"] == {"xbp": [2.0]}
        text = markdown(results(harness))
        assert "2.0 kernels and 0.0 copies a step; the device is busy for 0.8 of 0.8 µs" in text
        assert "`gemm`" in text
        assert "most of it, 6.0 µs, in 2.0 of" in text

    def test_kernels_cannot_be_counted_without_one(self, monkeypatch):
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="this PyTorch has no GPU"):
            Worker(None).timeline({"steps": 1})

    def test_who_takes_part_where(self):
        def of(table, backend):
            return {name for name, item in table.items() if takes_part(item.where, backend)}

        assert of(SIDES, "cupy") - of(SIDES, "numpy") == {"xbp-eager", "torch-graph", "xbp-numpy"}
        assert of(SIDES, "torch") - of(SIDES, "cupy") == {"sklearn"}
        only = {"launch", "ten-epochs", "seeds", "kernels"}
        assert of(WORKLOADS, "cupy") - of(WORKLOADS, "numpy") == only
        assert of(WORKLOADS, "numpy") <= of(WORKLOADS, "cupy")


class TestSummary:
    def test_of_a_trace(self):
        def event(cat, ts, dur, name):
            return {"cat": cat, "ts": ts, "dur": dur, "name": name}

        events = [
            event("kernel", 20.0, 10.0, "b"),  # not in order
            event("cpu_op", 0.0, 99.0, "aten::mm"),
            event("kernel", 10.0, 5.0, "a"),
            event("gpu_memcpy", 22.0, 4.0, "Memcpy DtoD"),  # within b
            event("kernel", 28.0, 6.0, "a"),  # overlaps b
            event("gpu_memset", 40.0, 2.0, "Memset"),
            {"name": "a thread", "ph": "M"},
        ]
        found = summary(events, 2)
        assert (found["kernels"], found["copies"]) == (1.5, 1.0)
        assert found["busy"] == (5 + 10 + 4 + 2) / 2
        assert found["span"] == (42 - 10) / 2
        assert found["largest"] == [
            *(["a", 1.0, 5.5], ["b", 0.5, 5.0], ["Memcpy DtoD", 0.5, 2.0], ["Memset", 0.5, 1.0]),
        ]

    def test_nothing_seen(self):
        with pytest.raises(RuntimeError, match="no kernel"):
            summary([{"cat": "gpu_memcpy", "ts": 0.0, "dur": 1.0, "name": "Memcpy"}], 1)
