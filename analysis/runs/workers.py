"""Workers of one thread each, started once for a whole script, and the display of their progress.

Work is a function of (item, progress), handed to a `concurrent.futures.Executor`; here that is one
of local processes. How many workers there are, where they are and which of them die changes when an
item is done, never its result. Progress is a bar on a terminal, and lines elsewhere.
"""

import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from tqdm import tqdm

# Large pages, and freed memory kept. Each step takes and frees the same few megabytes. Page faults
# and misses of the address translation would each cost a sixth of a step. (Settings of glibc;
# ignored elsewhere.)
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

LINE_SECONDS = 30.0  # least time between two lines of progress where there is no terminal
# Attempts at work that a dead worker left undone: as many as a Dask scheduler makes by default.
ATTEMPTS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress(Protocol):
    """A function that takes the units of work done since its last call.

    It may also take a few words on how the work goes. `there` marks units that an earlier run of
    the script did, which say nothing about the speed of this one.
    """

    def __call__(self, done: int, note: str = "", /, *, there: bool = False) -> None: ...


class Update(NamedTuple):
    """What a worker reports; see `Progress`."""

    done: int
    note: str = ""
    there: bool = False


def silent(done: int, note: str = "", /, *, there: bool = False) -> None:
    """Do nothing: for progress that nobody follows."""


class ClusterError(OSError):
    """A cluster of workers that cannot be reached or used.

    The message is one line that says what to do.
    """


class Workers:
    """Processes of one thread each, from the first piece of work to the end of the `with` block.

    Subclasses for workers of another kind define where their executor comes from (`_open`), how it
    ends (`_close`) and what it is given to call (`_call`).
    """

    def __init__(self, count: int, *, quiet: bool = False) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least 1 worker, found {count}")
        self.count, self.quiet = count, quiet
        self._updates: Any = None  # a queue of `Update`, for the bar
        self._executor: Any = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(stop=kind is not None)

    def map(
        self,
        name: str,
        function: Callable[[Item, Progress], Result],
        items: Sequence[Item],
        *,
        sizes: Sequence[int] | None = None,
        unit: str = " images",
    ) -> list[Result]:
        """Return function(item, progress) of every item, in order, and show a progress bar.

        name: the name of the bar.
        sizes: the units that each item will report, by default one.

        The longest items go first, so that none is left to run alone at the end. An exception is
        raised only once the other items have ended: what they did is kept in their files. Items
        that a dead worker left undone are done again. Runs then go on from where their files stand.
        """
        sizes = [1] * len(items) if sizes is None else sizes
        order = sorted(range(len(items)), key=lambda i: -sizes[i])
        ended: dict[int, Future[Result]] = {}
        for attempt in range(ATTEMPTS):
            if attempt:
                self._end(stop=True)
            if self._executor is None:
                self._executor = self._open()
            with self._bar(name, sum(sizes), unit, done=sum(sizes[i] for i in ended)):
                futures = {i: self._submit(function, items[i]) for i in order if i not in ended}
                wait(futures.values())
            ended |= {i: future for i, future in futures.items() if not _lost(future)}
            if len(ended) == len(items):
                return [ended[i].result() for i in range(len(items))]
        raise BrokenProcessPool(
            f"{name}: expected workers that live, found that some died at {ATTEMPTS} attempts"
        )

    def processor_seconds(self) -> float:
        """Return the processor time of the working processes so far, in seconds.

        It is nan where it is unknown.
        """
        processes = getattr(self._executor, "_processes", None) or {}
        try:
            return sum(_processor_seconds(number) for number in processes)
        except (OSError, ValueError):
            return math.nan

    def _open(self) -> Executor:
        # A new queue each time: a worker may die holding the lock of the old one.
        self._updates = get_context("spawn").Queue()
        return local_executor(self.count, self._updates)

    def _close(self, *, stop: bool) -> None:
        if stop:
            # Otherwise they would end their runs first.
            for process in list((self._executor._processes or {}).values()):
                process.terminate()
        self._executor.shutdown(wait=not stop, cancel_futures=True)
        self._updates.close()

    def _call(self, function: Callable[[Item, Progress], Result], item: Item) -> tuple[Any, ...]:
        """Return the function that the executor calls, and its arguments."""
        return _in_worker, function, item

    def _submit(self, function: Callable[[Item, Progress], Result], item: Item) -> "Future[Result]":
        try:
            with _interrupts_put_off(), _script_left_out():
                return self._executor.submit(*self._call(function, item))
        except BrokenProcessPool as error:  # a worker died while work was still being submitted
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    def _end(self, *, stop: bool) -> None:
        if self._executor is not None:
            self._close(stop=stop)
            self._executor = None

    @contextmanager
    def _bar(self, name: str, total: int, unit: str, *, done: int) -> Iterator[None]:
        stop = threading.Event()
        on_terminal = sys.stderr.isatty()
        # The bar shows what is left, the speed, and the last note.
        bar = tqdm(total=total, initial=done, desc=name, unit=unit, smoothing=0.05,
                   disable=self.quiet or not on_terminal, dynamic_ncols=True)  # fmt: skip
        lines = None if self.quiet or on_terminal else Lines(name, total, done)

        def drain() -> None:
            seen = done
            while (update := self._next_update(stop)) is not None:
                if update.note:
                    bar.set_postfix_str(update.note, refresh=False)
                units = min(update.done, total - seen)  # what is done a second time counts once
                seen += units
                if update.there:
                    _move_start(bar, units)
                else:
                    bar.update(units)
                if lines is not None:
                    lines.before += units * update.there
                    lines.tell(seen)

        thread = threading.Thread(target=drain, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.close()

    def _next_update(self, stop: threading.Event) -> Update | None:
        """Return the next report, or an empty one after a tenth of a second without any.

        None once `stop` is set and no report is left, or the queue was closed by an interrupt.
        """
        stopped = stop.is_set()
        try:
            return self._updates.get(timeout=0 if stopped else 0.1)
        except queue.Empty:
            return None if stopped else Update(0)
        except (ValueError, OSError, EOFError):
            return None


class Lines:
    """Progress as plain lines, for a log.

    There is one every LINE_SECONDS at most, so that short work has none.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        """Start the clock; `done` is what was done before."""
        self.name, self.total, self.before = name, total, done
        self.began = self.last_line = time.monotonic()

    def tell(self, done: int) -> None:
        """Print a line to standard error if one is due."""
        now = time.monotonic()
        if now - self.last_line < LINE_SECONDS or done >= self.total:
            return
        self.last_line = now
        elapsed, mine = now - self.began, done - self.before
        left = f", about {elapsed * (self.total - done) / mine:.0f} s left" if mine else ""
        print(
            f"{self.name}: {100 * done / self.total:.0f} % after {elapsed:.0f} s{left}",
            file=sys.stderr,
            flush=True,
        )


def local_executor(count: int, updates: Any = None) -> ProcessPoolExecutor:
    """Return an executor with processes of one thread each.

    They inherit the environment, which is set here before the first of them starts.
    """
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(updates,)
    )


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the number of cores that this process may use.

    That is the number in its affinity, limited by its container's share of processor time.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        share, period = quota.read_text().split()  # "max 100000" where there is no limit
        return min(cores, max(1, int(share) // int(period)))
    except (OSError, ValueError):
        return cores


_updates: Any = None


def _start_worker(updates: Any) -> None:
    global _updates
    _updates = updates
    # Ctrl-C reaches the whole process group; only the script handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_script, daemon=True).start()
    torch.set_num_threads(1)


@contextmanager
def _interrupts_put_off() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started here, even while they load libraries.

    In this process it is delayed until the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _script_left_out() -> Iterator[None]:
    """Keep processes that are started here from importing `__main__`.

    That import is slow and not needed.
    """
    script: Any = sys.modules["__main__"]
    spec, path = script.__spec__, script.__dict__.pop("__file__", None)
    script.__spec__ = None
    try:
        yield
    finally:
        script.__spec__ = spec
        if path is not None:
            script.__file__ = path


def _end_with_the_script() -> None:
    """End this worker when its script is gone.

    A script that is killed outright can end none of its workers.
    """
    script = parent_process()
    if script is not None:
        script.join()
        os._exit(1)


def _in_worker(function: Callable[[Item, Progress], Result], item: Item) -> Result:
    def report(done: int, note: str = "", /, *, there: bool = False) -> None:
        _updates.put(Update(done, note, there))

    return function(item, report)


def _move_start(bar: tqdm, units: int) -> None:
    """Count units that were there as if the bar had started with them."""
    if bar.disable:
        return
    bar.initial += units
    bar.n += units
    bar.last_print_n += units


def _processor_seconds(process: int) -> float:
    """Return a process's user and system time in seconds, as Linux reports it."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _lost(future: "Future[Any]") -> bool:
    """Return whether this ended because a worker died."""
    return not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)
