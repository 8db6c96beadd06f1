"""Worker processes of one thread each, started once for a whole script, and a progress bar over what they do.

Work is a function of (item, progress): how many processes there are changes when an item is done, never its result.
"""

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from tqdm import tqdm

# Large pages, and freed memory kept: each step takes and frees the same few megabytes, and page faults and misses of
# the address translation would each cost a sixth of it. (Settings of glibc; ignored elsewhere.)
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int], None]  # told the units of work done since it was last called


class Workers:
    """A pool of processes that starts with the first piece of work and ends with the `with` block."""

    def __init__(self, count: int, *, quiet: bool = False) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least 1 worker, found {count}")
        self.count, self.quiet = count, quiet
        self._updates: Any = get_context("spawn").Queue()
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is not None:
            if kind is not None:
                for process in list((self._executor._processes or {}).values()):  # they would end their runs first
                    process.terminate()
            self._executor.shutdown(wait=kind is None, cancel_futures=True)
            self._executor = None
        self._updates.close()

    def map(
        self,
        name: str,
        function: Callable[[Item, Progress], Result],
        items: Sequence[Item],
        *,
        sizes: Sequence[int] | None = None,
        unit: str = " steps",
    ) -> list[Result]:
        """function(item, progress) of every item, in their order, behind a progress bar called `name`.

        sizes: the units each item will report, one by default. The longest go first, so that none is left to run alone
        at the end. An exception is raised only once the other items have ended: what they did is kept in their files.
        """
        sizes = [1] * len(items) if sizes is None else sizes
        executor = self._start()
        with self._bar(name, sum(sizes), unit):
            order = sorted(range(len(items)), key=lambda i: -sizes[i])
            futures = {i: executor.submit(_in_worker, function, items[i]) for i in order}
            wait(futures.values())
        return [futures[i].result() for i in range(len(items))]

    def _start(self) -> Executor:
        if self._executor is None:
            self._executor = local_executor(self.count, self._updates)
        return self._executor

    @contextmanager
    def _bar(self, name: str, total: int, unit: str) -> Iterator[None]:
        stop = threading.Event()
        bar = tqdm(total=total, desc=name, unit=unit, smoothing=0.05, disable=self.quiet, dynamic_ncols=True)

        def drain() -> None:
            while not (stop.is_set() and self._updates.empty()):
                try:
                    bar.update(self._updates.get(timeout=0.1))
                except queue.Empty:
                    continue

        thread = threading.Thread(target=drain, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.close()


def local_executor(count: int, updates: Any = None) -> ProcessPoolExecutor:
    """Processes of one thread each. They inherit the environment, which is set here before the first of them starts."""
    os.environ.update({name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()})
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(updates,))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_updates: Any = None


def _start_worker(updates: Any) -> None:
    global _updates
    _updates = updates
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the script alone decides
    torch.set_num_threads(1)


def _in_worker(function: Callable[[Item, Progress], Result], item: Item) -> Result:
    return function(item, _updates.put)
