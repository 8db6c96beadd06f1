"""The demo's page for a test, served as its visitors get it, with any weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from figures import demo
from figures.demo.weights import Weights


@contextmanager
def serving(loaded: Weights) -> Iterator[str]:
    """Serve a page while the block runs, and yield its address."""
    import uvicorn

    from figures.demo.page import application

    server = uvicorn.Server(uvicorn.Config(application(loaded), log_level="warning"))
    with demo.listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
