"""Files fetched from upstream into memory: nothing is kept before it is verified.

A missing network is noticed in seconds. The time limits of an HTTP client do not give that, as they
start again for the name's look-up and for each of the host's addresses.
"""

import io
import queue
import threading
from typing import IO, Any

from reptile_core.datasets.common import Unavailable

# Seconds; requests advises a little over TCP's 3 s until it sends again.
CONNECT_S, READ_S = 3.05, 30.0
ANSWER_S = 5.0  # seconds until the network counts as absent


class _Bounded(io.BytesIO):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > self.limit:
            raise OSError(f"expected at most {self.limit} bytes, found more")
        return super().write(data)


def _ask(url: str, answer: queue.Queue[OSError | None]) -> None:
    # Imported here, like pooch below, as both are slow to import and a start from the cache needs
    # neither.
    import requests

    try:
        requests.head(url, timeout=CONNECT_S, allow_redirects=True).raise_for_status()
        answer.put(None)
    except OSError as error:  # requests' own errors are of this kind
        answer.put(error)


def download(url: str, *, limit: int, quiet: bool) -> IO[bytes]:
    """Download the file at `url` into memory, at most `limit` bytes of it.

    Raises Unavailable where it cannot be downloaded.
    """
    import pooch

    answer: queue.Queue[OSError | None] = queue.Queue()
    threading.Thread(target=_ask, args=(url, answer), daemon=True).start()
    buffer = _Bounded(limit)
    try:
        if (error := answer.get(timeout=ANSWER_S)) is not None:
            raise error
        fetch = pooch.HTTPDownloader(
            timeout=(CONNECT_S, READ_S), progressbar=not quiet, chunk_size=2**16
        )
        fetch(url, buffer, None)
    except queue.Empty:
        raise Unavailable(f"{url}: no answer within {ANSWER_S:g} seconds") from None
    except OSError as error:
        # The reason itself, without urllib3's wrapping.
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        raise Unavailable(
            f"{url}: cannot be downloaded: {' '.join(str(reason).split())}"
        ) from error
    return buffer
