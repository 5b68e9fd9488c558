"""The threads of the kernels: distribution of work, forks, signals, and threads that end.

`in_parallel` is called as kernels call it, with Python functions for the work; the BLAS is a
stand-in that records its calls. A thread that would wait for ever is ended by a broken barrier or
an alarm.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from blocks import linear_block
from processes import search_path

from xbp import nn, primitives
from xbp.accelerators.cpu import native, product

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PATIENCE = 20.0  # seconds, reached only by a failing test
Work = Callable[[int, int], None]
part_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)


def alone_until() -> ctypes.c_longlong:
    library: Any = native.library()
    return ctypes.c_longlong.in_dll(library, "xbp_alone_until")


def in_parallel(work: Work, threads: int, until: int = 0) -> None:
    """As if the time up to which callers do all parts themselves, after a stall, were `until`."""
    alone_until().value = until  # a busy machine may have stalled an earlier call
    problems: list[BaseException] = []

    def part(_: Any, number: int, parts: int) -> None:
        try:
            work(number, parts)
        except BaseException as problem:
            problems.append(problem)

    library: Any = native.library()
    library.in_parallel(part_function(part), None, ctypes.c_int(threads))
    if problems:
        raise problems[0]


def together(threads: int) -> None:
    """Parts on different threads, which wait for each other."""
    barrier, where = threading.Barrier(threads), {}

    def work(part: int, parts: int) -> None:
        where[part] = threading.get_ident()
        barrier.wait(PATIENCE)
        assert parts == threads

    in_parallel(work, threads)
    assert where.keys() == set(range(threads))
    assert len(set(where.values())) == threads and where[0] == threading.get_ident()


def alone(threads: int) -> None:
    """All parts in turn, on the calling thread."""
    done: list[tuple[int, int]] = []
    in_parallel(lambda part, parts: done.append((part, threading.get_ident())), threads)
    assert done == [(part, threading.get_ident()) for part in range(threads)]


class Busy:
    """A block in which another thread's task occupies the workers."""

    def __enter__(self) -> None:
        self.begun, self.end = threading.Barrier(3), threading.Event()

        def work(part: int, parts: int) -> None:
            self.begun.wait(PATIENCE)
            assert self.end.wait(PATIENCE)

        self.executor = ThreadPoolExecutor(1)
        self.task = self.executor.submit(in_parallel, work, 2)
        self.begun.wait(PATIENCE)

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.task.result()
        self.executor.shutdown()


def in_child(work: Callable[[], None]) -> None:
    """Call it in a forked process."""
    with warnings.catch_warnings():  # newer Pythons say that fork and threads are dangerous
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- parts ---------------------------------------------------------------------------------------


def test_a_task_is_done_once_by_so_many_threads() -> None:
    for threads in (2, 1, 4, 3, 4, 5, 2):  # more are started, and not all have a part each time
        together(threads)
        time.sleep(0.005)  # they fall asleep
        together(threads)


def test_who_finds_the_workers_busy_works_alone_and_has_it_later() -> None:
    together(3)
    with Busy():
        for threads in (1, 2, 3):
            alone(threads)
    together(3)


def test_each_part_is_done_once_while_another_is_held_up() -> None:
    """Part 1 of five ends only after all others have begun, by whomever."""
    caller = threading.get_ident()
    for _ in range(20):
        done: list[int] = []
        others = threading.Event()

        def work(part: int, parts: int, done: list[int] = done, all_: Any = others) -> None:
            done.append(part)
            if len(done) == parts:
                all_.set()
            if part == 1 and threading.get_ident() != caller:
                assert all_.wait(PATIENCE)

        in_parallel(work, 5)
        assert sorted(done) == list(range(5))


def test_after_a_stall_the_caller_works_alone_for_a_while() -> None:
    arrived = threading.Barrier(2)
    together(2)
    begun = time.monotonic()

    def stalled(part: int, _: int) -> None:
        arrived.wait(PATIENCE)
        if part:  # longer than the caller's own work, the way to the barrier
            time.sleep(0.02 + 3 * (time.monotonic() - begun))

    in_parallel(stalled, 2)
    assert alone_until().value > 0
    where: list[int] = []

    def work(part: int, _: int) -> None:
        where.append(threading.get_ident())
        time.sleep(0.05 * (part == 0))  # time for workers to take the others

    in_parallel(work, 3, 2**63 - 1)
    assert where == [threading.get_ident()] * 3
    together(3)  # at another time


def test_no_stall_where_the_caller_has_as_much_to_do() -> None:
    arrived, done = threading.Barrier(2), threading.Event()

    def work(part: int, _: int) -> None:
        arrived.wait(PATIENCE)
        if part:
            assert done.wait(PATIENCE)
            time.sleep(0.005)
        else:
            time.sleep(0.5)
            done.set()

    together(2)
    in_parallel(work, 2)
    assert alone_until().value == 0


def test_a_task_within_a_task() -> None:
    inner: list[int] = []
    in_parallel(lambda part, _: in_parallel(lambda k, __: inner.append(3 * part + k), 3), 2)
    assert sorted(inner) == list(range(6))
    together(2)


@needs_fork
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much memory is in use?")
def test_where_no_thread_can_be_started_the_caller_does_it_all() -> None:
    """In a process of its own: a child could use the stacks of all threads that others started."""
    code = "import test_workers; test_workers.work_where_no_thread_can_be_started()"
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": search_path(here, here.parent)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def work_where_no_thread_can_be_started() -> None:
    def limited() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        # Room for Python's own arrays, and for no stack of 8 MiB more: only those of the parent's
        # threads are available again. Threads that can be started must not take up an old task, and
        # the count must be right.
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (6 << 20), limits[1]))
        for threads in range(2, 40):
            done = [0] * threads
            in_parallel(lambda part, _, done=done: done.__setitem__(part, done[part] + 1), threads)
            assert done == [1] * threads
        alone(40)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        together(5)

    together(3)
    in_child(limited)


# --- processes, signals, threads that end --------------------------------------------------------


@needs_fork
def test_a_process_forked_while_the_workers_are_busy_has_its_own() -> None:
    together(3)
    with Busy():
        in_child(lambda: together(3))
    in_child(lambda: in_child(lambda: together(2)))
    together(3)


def test_signals_are_for_the_threads_of_the_program() -> None:
    """Otherwise a signal that the process blocks and waits for would end it."""
    masks: dict[int, set[Any]] = {}
    barrier = threading.Barrier(3)

    def work(part: int, _: int) -> None:
        masks[part] = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        barrier.wait(PATIENCE)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGUSR1 not in before
    together(3)
    in_parallel(work, 3)
    assert masks[0] == signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}
    for mask in (masks[1], masks[2]):
        assert not faults & mask
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1} <= mask


class Numbers(ctypes.Structure):
    _fields_ = (("values", ctypes.c_size_t * 10),)


def memory_in_use() -> int:
    """Bytes in use, allocated by malloc."""
    info = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if info is None:
        pytest.skip("no way to ask how much memory is in use")
    info.restype = Numbers
    values = info().values
    return int(values[4] + values[7])  # hblkhd and uordblks, see mallinfo(3)


def test_a_thread_that_ends_leaves_no_workspace_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "threads", lambda: 1)
    layer, x = nn.Conv2d(4, 2, 3, rng=0), np.ones((64, 4, 64, 64), np.float32)
    workspace = 4 * 64 * 64 * 4 * native.lanes(4)  # a block of images, at least

    def run() -> None:
        for size in (32, 64):  # the second needs more than is left after the first
            layer(x[..., :size, :size])

    run()
    before = memory_in_use()
    for _ in range(8):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert memory_in_use() - before < 2 * workspace


def convolved() -> None:
    y, backward = primitives.convolve(
        np.ones((2, 64, 3, 3)), np.ones((64, 64, 3, 3)), padding=(1, 1)
    )
    backward(y)


def linear() -> None:
    """A block with memory for one more gradient of the output's size."""
    x, weight = np.ones((200, 16)), np.ones((64, 16))
    y, backward = linear_block(x, weight, relu=True)
    backward(y)


@pytest.mark.parametrize(("run", "size"), [(convolved, 64 * 64 * 9 * 8), (linear, 200 * 64 * 8)])
def test_a_call_leaves_no_memory_behind(
    run: Callable[[], None], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "threads", lambda: 1)
    for _ in range(2):
        run()
    before = memory_in_use()
    for _ in range(8):
        run()
    assert memory_in_use() - before < 4 * size


def test_a_vector_has_as_many_lanes_as_it_has_bytes_for() -> None:
    assert native.lanes(4) * 4 == native.lanes(8) * 8
    assert native.lanes(4) in (4, 8, 16)


# --- the BLAS ------------------------------------------------------------------------------------

Gemm = ctypes.CFUNCTYPE(
    None, *(ctypes.c_int,) * 3, *(ctypes.c_int64,) * 3, ctypes.c_double,
    *(ctypes.c_void_p, ctypes.c_int64) * 2, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64,
)  # fmt: skip
GetThreads, SetThreads = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(None, ctypes.c_int)


class Blas:
    """A BLAS that records its calls, and waits on request."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.waits: dict[str, threading.Event] = {}
        self.reached = threading.Event()
        self.functions = Gemm(self.gemm), GetThreads(self.get), SetThreads(self.events.append)

    def note(self, name: str) -> None:
        self.events.append(name)
        if name in self.waits:
            self.reached.set()
            self.waits.pop(name).wait(PATIENCE)

    def gemm(self, *_: Any) -> None:
        self.note("product")

    def get(self) -> int:
        self.note("asked")
        return 7

    def multiply(self) -> None:
        multiply(*self.functions, m=1, n=1, k=1, threads=1)


def task_of(gemm: Any, get: Any, set_: Any, **sizes: int) -> native.Product:
    address = [ctypes.cast(function, ctypes.c_void_p).value for function in (gemm, get, set_)]
    names = ("gemm", "get_threads", "set_threads")
    return native.Product(**dict(zip(names, address, strict=True)), **sizes)


def multiply(*functions: Any, **sizes: int) -> None:
    library: Any = native.library()
    library.multiply_float64(ctypes.byref(task_of(*functions, **sizes)))


ONE = ["asked", 1, "product", 7]


def test_the_blas_has_one_thread_while_there_are_products() -> None:
    blas = Blas()
    blas.multiply()
    assert blas.events == ONE
    blas.events.clear()
    blas.waits["product"] = go_on = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        first = executor.submit(blas.multiply)
        assert blas.reached.wait(PATIENCE)
        blas.multiply()  # meanwhile
        assert blas.events == ["asked", 1, "product", "product"]
        go_on.set()
        first.result()
    assert blas.events == ["asked", 1, "product", "product", 7]
    blas.events.clear()
    blas.multiply()
    assert blas.events == ONE


def test_a_product_of_two_matrices_asks_and_tells_the_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    blas, a = Blas(), np.ones((300, 300))
    addresses = tuple(ctypes.cast(f, ctypes.c_void_p).value for f in blas.functions)
    monkeypatch.setattr(product, "blas", lambda dtype: addresses)
    monkeypatch.setattr(native, "threads", lambda: 2)
    monkeypatch.setattr(product, "is_blocked", lambda *sizes: False)
    assert product.matmul(a, a.T).shape == (300, 300)  # such a b is left to the BLAS
    assert blas.events == ["asked", 1, "product", "product", 7]  # half of it on each thread


def test_no_product_begins_before_the_blas_is_held() -> None:
    blas = Blas()
    blas.waits["asked"] = go_on = threading.Event()
    with ThreadPoolExecutor(2) as executor:
        products = [executor.submit(blas.multiply)]
        assert blas.reached.wait(PATIENCE)
        products.append(executor.submit(blas.multiply))
        time.sleep(0.05)  # long enough to begin, if nothing blocks it
        assert blas.events == ["asked"]
        go_on.set()
        for done in products:
            done.result()
    assert blas.events[:2] == ["asked", 1] and blas.events[-1] == 7


# During a fork no other thread can run Python, so these threads use C functions.


def asks_before_and_after() -> None:
    blas = Blas()
    blas.multiply()
    assert blas.events == ONE


@needs_fork
def test_a_fork_waits_until_the_blas_is_held() -> None:
    """Otherwise the child would have a lock that is never released."""
    c, begun = ctypes.CDLL(None), threading.Event()

    def slow() -> None:
        begun.set()
        multiply(c.sched_yield, c.sched_yield, c.sleep, m=0, n=0, k=0, threads=1)  # for a second

    with ThreadPoolExecutor(1) as executor:
        task = executor.submit(slow)
        assert begun.wait(PATIENCE)
        time.sleep(0.2)
        in_child(asks_before_and_after)
        task.result()
    asks_before_and_after()


@needs_fork
def test_a_fork_waits_for_a_product_and_the_next_product_for_the_fork() -> None:
    """Otherwise the child's BLAS would be locked for ever, or without threads."""
    c, begun, library = ctypes.CDLL(None), threading.Event(), cast(Any, native.library())
    # Like the BLAS, calls poll(…, 0, 100): it waits for 100 ms.
    task = task_of(c.poll, c.sched_yield, c.abs, m=1, n=1, trans_a=0, trans_b=100, threads=1)

    def six_of_them() -> None:
        begun.set()
        part = ctypes.cast(library.multiply_float64, ctypes.c_void_p)
        library.in_parallel(part, ctypes.byref(task), ctypes.c_int(6))  # one after the other

    with Busy(), ThreadPoolExecutor(1) as executor:
        products = executor.submit(six_of_them)
        assert begun.wait(PATIENCE)
        time.sleep(0.05)
        for _ in range(3):
            in_child(asks_before_and_after)
        products.result(PATIENCE)
    asks_before_and_after()


@needs_fork
def test_a_fork_while_memory_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LEAST_KEPT", 0)
    with product._lock:  # like another thread
        in_child(lambda: product.memory((3, 5), np.dtype("float32")).fill(1))
    product.memory((3, 5), np.dtype("float32"))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize(("m", "n"), [(65, 40), (40, 65), (48, 48), (16, 1), (1, 300), (33, 33)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_parts_of_a_product(m: int, n: int, threads: int, transposed: bool) -> None:
    """Each entry of c once, with its row of a and column of b, in parts of nearly equal size."""
    k, a, b, c, entry = 5, 10_000_000, 20_000_000, 30_000_000, 8
    lda, ldb = (m + 3, k + 2) if transposed else (k + 3, n + 2)
    stored = product.TRANSPOSED if transposed else product.NOT_TRANSPOSED
    covered, sizes, lock = np.zeros((m, n), int), [], threading.Lock()

    def gemm(*arguments: Any) -> None:
        order, ta, tb, rows, columns, depth, alpha, a_, lda_, b_, ldb_, beta, c_, ldc = arguments
        assert (order, ta, tb, depth, alpha, beta) == (101, stored, stored, k, 1, 0)
        assert (lda_, ldb_, ldc) == (lda, ldb, n)
        row, column = divmod((c_ - c) // entry, n)
        assert a_ - a == entry * row * (1 if transposed else lda)
        assert b_ - b == entry * column * (ldb if transposed else 1)
        with lock:
            covered[row : row + rows, column : column + columns] += 1
            sizes.append(rows if m > n else columns)

    library: Any = native.library()
    other, address = Blas(), lambda function: ctypes.cast(function, ctypes.c_void_p).value
    keep = Gemm(gemm)
    task = native.Product(
        gemm=address(keep), get_threads=address(other.functions[1]),
        set_threads=address(other.functions[2]), a=a, b=b, c=c, m=m, n=n, k=k, lda=lda, ldb=ldb,
        trans_a=stored, trans_b=stored, threads=threads,
    )  # fmt: skip
    library.multiply_float64(ctypes.byref(task))
    assert np.all(covered == 1)
    pieces = -(-max(m, n) // 16)  # multiples of 16, the vectors of a BLAS
    assert min(sizes) > 0 and max(sizes) <= 16 * -(-pieces // threads)
