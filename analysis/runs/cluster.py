"""Workers of a Dask cluster, on one machine or many, behind the same interface as local processes.

The state of a run is a file, so that a worker goes on where another one stopped. Hence all workers
must see one folder, run the same code and have one thread each. Each is checked for that before its
first piece of work. Needs the package `distributed`.
"""

import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from distributed import Client, get_worker
from distributed.scheduler import KilledWorker

from analysis.runs.workers import ClusterError, Item, Progress, Result, Update, Workers
from reptile_core import native
from reptile_core.files import sources_digest

TOPIC = "reptile-progress"
PATIENCE = 10  # seconds to find a scheduler, and then a worker
INTERVAL = 1.0  # seconds between reports of a worker: the scheduler passes them on one by one


class Abandoned(Exception):
    """Signal to a worker that nobody waits for its work any more.

    Its script was stopped or has died. The progress function of the work raises it.
    """


@dataclass(frozen=True)
class Terms:
    """What a worker must find to be of use to a script.

    script: which script, as a unique name.
    identity: a digest of its code and libraries.
    marker: an empty file in the folder that holds the runs.
    data: where $REPTILE_DATA points, if anywhere.
    """

    script: str
    identity: str
    marker: Path
    data: str | None


class ClusterWorkers(Workers):
    """Workers that a Dask scheduler has, or comes to have.

    They belong to the user who started them, and they stay when the script ends.
    """

    def __init__(self, address: str, shared: Path, *, quiet: bool = False) -> None:
        """Connect to the scheduler at `address` and check its workers.

        shared: a folder that holds all that is written.
        Raises ClusterError where no scheduler answers, or a worker does not meet the terms.
        """
        shared.mkdir(parents=True, exist_ok=True)
        script = uuid4().hex
        data = os.environ.get("REPTILE_DATA")
        marker = shared.resolve() / f".script-{script}"
        self._terms = Terms(script, _identity(), marker, data and str(Path(data).resolve()))
        self._client = _connect(address)
        marker.touch()
        try:
            addresses = list(self._client.nthreads())
            submit = partial(self._client.submit, check, self._terms, pure=False)
            asked = [submit(workers=[at]) for at in addresses]
            self._client.gather(asked)
        # Whatever a worker cannot do shows here, such as importing our code.
        except Exception as error:
            self._leave()
            if isinstance(error, ClusterError):
                raise
            message = str(error).splitlines()[0]
            raise ClusterError(
                "expected a scheduler and workers that can load this code (install it there too, "
                f"or start them in its folder), found {type(error).__name__}: {message}"
            ) from error
        super().__init__(len(addresses), quiet=quiet)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        self._leave()

    def map(self, *arguments: Any, **options: Any) -> list[Any]:
        """Run the items on the cluster, otherwise as local processes do.

        Raises ClusterError where worker after worker died at one item, or the scheduler did.
        """
        try:
            return super().map(*arguments, **options)
        except KilledWorker as error:
            raise ClusterError(
                f"{arguments[0]}: expected workers that live, found that "
                f"{error.allowed_failures + 1} died one after the other (out of memory?)"
            ) from error
        except CancelledError as error:
            raise ClusterError(
                f"{arguments[0]}: expected a scheduler that lives, found it gone"
            ) from error

    def _open(self) -> Executor:
        self._updates = queue.Queue()
        self._client.subscribe_topic(TOPIC, self._receive)
        return self._client.get_executor(pure=False)

    def _receive(self, event: tuple[float, dict[str, Any]]) -> None:
        """Pass a worker's report to the bar, unless it is of another script's work."""
        _, report = event
        if report["script"] == self._terms.script:
            self._updates.put(Update(report["there"], there=True))
            self._updates.put(Update(report["done"], report["note"]))

    def _close(self, *, stop: bool) -> None:
        # To stop work is to cancel it; a worker abandons it at its next report.
        self._executor.shutdown(wait=not stop)

    def _call(self, function: Callable[[Item, Progress], Result], item: Item) -> tuple[Any, ...]:
        return _in_worker, self._terms, function, item

    def _leave(self) -> None:
        self._terms.marker.unlink(missing_ok=True)
        self._client.close()


@lru_cache
def check(terms: Terms) -> None:
    """Take over the script's settings in a worker, once for each script.

    Raises ClusterError where this worker cannot serve it.
    """
    worker = get_worker()
    if worker.state.nthreads != 1:
        raise ClusterError(
            "expected workers of one thread (dask worker … --nthreads 1 --nworkers -1), found "
            f"{worker.address} with {worker.state.nthreads}"
        )
    if not terms.marker.exists():
        raise ClusterError(
            f"expected workers that see the folder {terms.marker.parent} (put --out on a shared "
            f"one), found that {worker.address} does not"
        )
    if terms.identity != _identity():
        raise ClusterError(
            f"expected workers with {terms.identity} as here (update and restart them), found "
            f"{worker.address} with {_identity()}"
        )
    if terms.data is not None:
        os.environ["REPTILE_DATA"] = terms.data


def _in_worker(terms: Terms, function: Callable[[Item, Progress], Result], item: Item) -> Result:
    check(terms)  # once more, for workers that joined later
    torch.set_num_threads(1)
    report = _Report(terms.script)
    result = function(item, report)
    report.send()
    return result


class _Report:
    """Progress of the task that this thread of a worker works on.

    Reports are sent INTERVAL seconds apart or more, as the scheduler passes them on one by one.
    """

    def __init__(self, script: str) -> None:
        self.script, self.worker = script, get_worker()
        self.key = self.worker.get_current_task()
        self.done, self.there, self.note, self.sent = 0, 0, "", time.monotonic()

    def __call__(self, done: int, note: str = "", /, *, there: bool = False) -> None:
        if there:
            self.there += done
        else:
            self.done += done
        self.note = note or self.note
        task = self.worker.state.tasks.get(self.key)
        if task is None or task.state == "cancelled":
            raise Abandoned
        if time.monotonic() - self.sent >= INTERVAL:
            self.send()

    def send(self) -> None:
        event = {"script": self.script, "done": self.done, "there": self.there, "note": self.note}
        self.worker.log_event(TOPIC, event)
        self.done, self.there, self.sent = 0, 0, time.monotonic()


def _connect(address: str) -> Client:
    """Return the client of a scheduler that has workers; ClusterError if there is none."""
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"expected the address of a Dask scheduler, tcp://HOST:PORT, found {address} "
            f"({str(error).splitlines()[0]})"
        ) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except OSError as error:
        client.close()
        raise ClusterError(
            f"expected workers (start some: dask worker {address} --nthreads 1 --nworkers -1), "
            "found none"
        ) from error
    return client


@lru_cache
def _identity() -> str:
    """Return the code and libraries that decide the bits of a result, with a digest of the code.

    It is cached, as a process keeps the code that it has loaded.
    """
    code = sources_digest(Path(__file__).parents[2], "analysis", "reptile_core")
    loops = "compiled loops" if native.library() is not None else "no compiled loops"
    return f"torch {torch.__version__}, {loops}, code {code[:12]}"
