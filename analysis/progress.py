"""One progress bar over the runs of an experiment, fed by its workers through a queue."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm


@contextmanager
def progress(description: str, total: int, *, unit: str = " steps", quiet: bool = False) -> Iterator[Any]:
    """Yield a queue; every integer put into it, here or in a worker, moves the bar by as many units."""
    updates: Any = get_context("spawn").Queue()
    stop = threading.Event()
    bar = tqdm(total=total, desc=description, unit=unit, smoothing=0.05, disable=quiet, dynamic_ncols=True)

    def drain() -> None:
        while not stop.is_set():
            try:
                bar.update(updates.get(timeout=0.2))
            except queue.Empty:
                continue

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield updates
    finally:
        stop.set()
        thread.join()
        while True:
            try:
                bar.update(updates.get_nowait())
            except queue.Empty:
                break
        bar.close()
        updates.close()
