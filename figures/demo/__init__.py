"""The post's interactive figure: draw three things, then one of them again.

It shows what Reptile's initialization and joint training's make of it after a few inner steps.

python reproduce.py demo             trains both for about a minute the first time, then opens
                                     the page
python reproduce.py demo --runs DIR  takes them from runs of figure 3 at the paper's scale
                                     (default: results/paper/runs)
"""

import argparse
import contextlib
import socket
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from analysis import program
from analysis.ending import UsageError
from analysis.experiments.shared.experiment import Context
from analysis.results.folder import alone_in
from analysis.runs.job import Source
from analysis.runs.workers import Workers
from figures.demo import weights
from reptile_core import datasets

RUNS = Path("results/paper/runs")
PACKAGES = ("starlette", "uvicorn")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"{program.name()} demo",
        description=program.as_called(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="0 for any that is free (default: 7860)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the Omniglot zips or an omniglot/ of them",
    )
    parser.add_argument(
        "--dataset", choices=("auto", "omniglot", "glyphs"), default="auto", help="(default: auto)"
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help=f"runs to take the weights from (default: {RUNS})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("results/demo"),
        help=("where runs for this page alone are kept (default: results/demo)"),
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    # Read by the script, which reports errors in one line without it.
    parser.add_argument("--debug", action="store_true", help="tracebacks of errors")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], *, scale: weights.OwnScale = weights.OWN_SCALE) -> int:
    """Do what the arguments say and return the exit code.

    scale: the size of this page's own runs.
    """
    options = parse(arguments)
    with listen(options.host, options.port) as listener:
        serve(listener, load(options, scale), browser=not options.no_browser)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Bind the address before any work, so that a fault shows at once.

    Raises UsageError where it cannot be bound, or where a package of the extra demo is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"demo: expected the extra demo, found no {' and no '.join(missing)}; pip install -e "
            "'.[demo]'"
        )
    if not 0 <= port < 2**16:
        raise UsageError(f"--port: expected a number from 0 to {2**16 - 1}, found {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host, --port: expected where to listen, found {host} and {port} ({error})"
        ) from error


def load(
    options: argparse.Namespace, scale: weights.OwnScale = weights.OWN_SCALE
) -> weights.Weights:
    """Load the weights of the user's runs where there are any, else of this page's own.

    The page's own are of the scale's size, and are trained now if need be.
    """
    try:
        data = datasets.load(options.dataset, data=options.data, quiet=options.quiet)
    except datasets.DataError as error:
        raise UsageError(str(error)) from error
    with Workers(len(weights.NAMES), quiet=options.quiet) as workers:
        source = Source(data.name, options.data, data.content, data.real)
        context = Context("paper", source, workers, options.out / "runs")
        measured = weights.of_figure_3(context, options.runs or RUNS)
        if measured is None and options.runs is not None:
            raise UsageError(
                f"--runs: expected the ablation's finished runs g1 and g1+g2+g3+g4 on {data.name}, "
                f"at the paper's scale, found none in {options.runs}"
            )
        if measured is None:
            measured = weights.own(context, scale)
            with alone_in(options.out):
                weights.train(context, measured)
        return weights.load(context, measured)


def serve(listener: socket.socket, loaded: weights.Weights, *, browser: bool) -> None:
    """Serve the page until interrupted."""
    import uvicorn

    from figures.demo.page import application

    torch.set_num_threads(1)  # a batch of three is too small to share
    host, port, *_ = listener.getsockname()
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    print(f"The page is at {url} (Ctrl-C ends it).", flush=True)
    if browser:
        webbrowser.open(url)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        uvicorn.Server(uvicorn.Config(application(loaded), log_level="warning")).run(
            sockets=[listener]
        )
