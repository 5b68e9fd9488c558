"""PyTorch's CUDA graph, with a stand-in for CUDA."""

import contextlib

import pytest

from xbp.benchmarks.workloads import make_model


class Calls:
    """A stand-in for torch.cuda that works at once, on the CPU, and records its calls."""

    def __init__(self):
        self.calls = []
        self.graphs = []

    def note(self, name):
        self.calls.append(name)

    def Stream(self):  # noqa: N802
        stream = type("Stream", (), {})()
        stream.wait_stream = lambda other: self.note("the side stream waits")
        return stream

    def current_stream(self):
        stream = type("Stream", (), {})()
        stream.wait_stream = lambda other: self.note("the stream waits")
        return stream

    @contextlib.contextmanager
    def stream(self, stream):
        self.note("on the side stream")
        yield
        self.note("off it")

    def CUDAGraph(self):  # noqa: N802
        graph = type("Graph", (), {})()
        graph.replay = lambda: self.note("replay")
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        self.note("capture")
        yield
        self.note("captured")


@pytest.fixture
def graphed(monkeypatch):
    """A captured PyTorch network, the recorded calls, and a function that makes another network."""
    torch = pytest.importorskip("torch")
    from xbp.benchmarks import side_torch

    options = {"backend": "numpy", "device": None, "tf32": False}
    side = side_torch.Side(options | {"threads": torch.get_num_threads()})
    calls = Calls()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(calls, name))
    return side, calls, side_torch


class TestCUDAGraph:
    MODEL = ("mlp", 6, 5, 3)

    def data(self, torch, n=16):
        rng = torch.Generator().manual_seed(0)
        x = torch.rand((n, 6), generator=rng)
        return x, torch.arange(n) % 3

    def weights(self):
        return make_model(*self.MODEL, rng=0).state_dict()

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_a_replay_is_a_step(self, graphed, optimizer):
        """Losses and weights of eager training in place of replays."""
        side, calls, module = graphed
        torch = side.torch
        x, y = self.data(torch)
        eager = module.Network(side, self.MODEL, optimizer, 0.1)
        network = module.Graphed(side, self.MODEL, optimizer, 0.1)
        for each in (eager, network):
            each.load(self.weights())
        network.feed(x, y)
        losses = []
        for step, rows in enumerate([[3, 1, 4, 9], [5, 2, 6, 8], [0, 7, 15, 14]]):
            rows = torch.tensor(rows)
            for each in (eager, network):
                each.rate(0.1 / (step + 1))
            value = network.step_at(rows)
            _, static, output = network.graphs[4]
            assert static.tolist() == rows.tolist()
            assert value is output
            again = network.step(x[static], y[static])  # the work of the replay
            losses.append(float(again.detach()))
            expected = float(eager.step(x[rows], y[rows]).detach())
            assert losses[-1] == pytest.approx(expected, rel=1e-6)
        assert calls.calls.count("replay") == 3
        for p, q in zip(eager.model.parameters(), network.model.parameters(), strict=True):
            assert p.detach().numpy() == pytest.approx(q.detach().numpy(), rel=1e-5, abs=1e-7)
        assert len(set(losses)) == 3

    def test_order_of_calls(self, graphed):
        """The order of PyTorch's notes: wait, warm up on a side stream, wait, capture, replay."""
        side, calls, module = graphed
        x, y = self.data(side.torch)
        network = module.Graphed(side, self.MODEL, "adam", 0.1)
        network.load(self.weights())
        real = network.step
        network.step = lambda *batch: calls.note("a step") or real(*batch)
        network.feed(x, y)
        for n in (4, 4, 2, 4):
            network.step_at(side.torch.arange(n))
        capture = [
            *("the side stream waits", "on the side stream", "a step", "a step", "a step"),
            *("off it", "the stream waits", "capture", "a step", "captured"),
        ]
        assert calls.calls == [*capture, "replay", "replay", *capture, "replay", "replay"]

    def test_a_capture_changes_nothing(self, graphed):
        side, _, module = graphed
        torch = side.torch
        network = module.Graphed(side, self.MODEL, "adam", 0.1)
        network.load(self.weights())
        network.feed(*self.data(torch))
        network._capture(torch.arange(4))
        for name, value in network.model.state_dict().items():
            assert torch.equal(value, torch.from_numpy(self.weights()[name]))
        assert network._state()
        assert all(float(t.abs().max()) == 0 for t in network._state())
        network.step(*self.data(torch))
        trained = [t.clone() for t in network._state()]
        network._capture(torch.arange(4))  # another size, within training
        assert all(torch.equal(a, b) for a, b in zip(trained, network._state(), strict=True))
        network.load(self.weights())
        assert all(float(t.abs().max()) == 0 for t in network._state())

    def test_gradients_belong_to_the_graph(self, graphed):
        """Gradients are None before the capture, which makes them; later steps keep them."""
        side, _, module = graphed
        network = module.Graphed(side, self.MODEL, "sgd", 0.1)
        network.load(self.weights())
        network.feed(*self.data(side.torch))
        seen, real = [], network.step

        def step(*batch):
            seen.append([p.grad for p in network.model.parameters()])
            return real(*batch)

        network.step = step
        network.step_at(side.torch.arange(4))
        assert seen[-1] == [None] * 4
        assert all(p.grad is not None for p in network.model.parameters())

    def test_other_data_are_captured_anew(self, graphed):
        side, calls, module = graphed
        x, y = self.data(side.torch)
        network = module.Graphed(side, self.MODEL, "sgd", 0.1)
        network.load(self.weights())
        for data in ((x, y), (x, y), (x.clone(), y)):
            network.feed(*data)
            network.step_at(side.torch.arange(4))
        assert calls.calls.count("capture") == 2

    def test_an_empty_kernel_is_captured_after_it_was_loaded(self, graphed, monkeypatch):
        side, calls, _ = graphed
        cuda = side.torch.cuda
        monkeypatch.setattr(cuda, "_sleep", lambda cycles: calls.note(f"sleep {cycles}"))
        monkeypatch.setattr(cuda, "synchronize", lambda: calls.note("wait"))
        replay = side.launch(2, graph=True)
        replay()
        sleeps = ["sleep 0"] * 2
        assert calls.calls == [*sleeps, "wait", "capture", *sleeps, "captured", "replay"]
        calls.calls.clear()
        side.launch(1, graph=False)()
        assert calls.calls == ["sleep 0"] * 2

    def test_max_autotune_on_a_gpu_alone(self, graphed, monkeypatch):
        side, calls, module = graphed
        torch, side.compiled = side.torch, True
        asked = []

        def compiled(what, **options):
            asked.append(options)
            return what

        monkeypatch.setattr(torch, "compile", compiled)
        monkeypatch.setattr(
            torch.compiler, "cudagraph_mark_step_begin", lambda: calls.note("a new step")
        )
        x, y = self.data(torch)
        for side.on_gpu in (False, True):
            network = module.Network(side, self.MODEL, "sgd", 0.1)
            network.load(self.weights())
            network.step(x, y)
        assert asked == [{"dynamic": False}] + [{"dynamic": False, "mode": "max-autotune"}] * 2
        assert calls.calls == ["a new step"]

    def test_without_cuda(self):
        torch = pytest.importorskip("torch")
        from xbp.benchmarks.side_torch import Side as TorchSide

        options = {"device": None, "tf32": False, "threads": torch.get_num_threads()}
        with pytest.raises(RuntimeError, match="a CUDA graph needs a GPU"):
            TorchSide(options | {"backend": "numpy", "graph": True})
        if torch.version.cuda is None:
            with pytest.raises(RuntimeError, match="was built without CUDA"):
                TorchSide(options | {"backend": "cupy"})
