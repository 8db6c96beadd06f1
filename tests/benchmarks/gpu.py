"""Everything that a GPU has to show, for somebody who has one for some minutes.

    python -m tests.benchmarks.gpu --seconds 480 --out DIR [--data DIR] [--device cpu]
                                   [--scale 0.01]

The parts that are worth most come first, and each part is saved when it ends:
(1) the checks that only a GPU can make;
(2) lanes from 1 to 256 in float32 and TF32, next to the plain loop;
(3) figure 3 at the paper's scale, five seeds;
(4) Omniglot 5-way and then 20-way, three seeds.
Each is a process that is interrupted when its time is over. DIR then holds at most six files of
16 MB: results.md, manifest.json, tables.tar.gz and the final states of all runs. They say what
there was no time for. No network is needed.

--device cpu --scale 0.01 rehearses all of it without a GPU, at a hundredth of the iterations, tasks
and seeds.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from analysis.results import checkout, manifest
from reptile_core.files import write_atomically
from tests.benchmarks import gpu_pack
from tests.benchmarks.gpu_part import PARTS

# The most that a part may take of all the time. What one part leaves, the next may use.
SHARES = {
    "checks": 0.2,
    "lanes": 0.25,
    "figure_3": 1.0,
    "omniglot-5way": 0.7,
    "omniglot-20way": 1.0,
}
LEAST = 10.0  # seconds below which a part is not begun: libraries take some of them to load
PACKING = 20.0  # seconds kept for an interrupted part to end, and for the last packing
GRACE = 10.0  # seconds that an interrupted part has to write what it has


@dataclass(frozen=True)
class Ended:
    """How a part ended, after how long, and what it printed.

    how: "finished", "failed", "interrupted: no time" or "not begun: no time".
    """

    part: str
    how: str
    seconds: float
    said: str


def main() -> int:
    """Run the parts and return the exit code.

    0 if none that was begun failed, 1 if one did, 2 without a GPU.
    """
    options = _parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "--device: expected a CUDA device, found none that torch can use: not measured",
            file=sys.stderr,
        )
        return 2
    began, ended = time.monotonic(), []
    record = _record(options)
    for part in PARTS:
        left = options.seconds - PACKING - (time.monotonic() - began)
        ended.append(_run(part, min(left, SHARES[part] * options.seconds), options))
        print(
            f"\n**{part}**: {ended[-1].how}, {ended[-1].seconds:.0f} s\n\n{ended[-1].said}",
            flush=True,
        )
        _save(record, ended, options.out)
    return 1 if any(one.how == "failed" for one in ended) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="for all of it (default: 480)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="directory that holds the data sets"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="of iterations, tasks and seeds, above 0 (default: 1)",
    )
    options = parser.parse_args()
    for name, most in (("seconds", float("inf")), ("scale", 1.0)):
        if not 0 < getattr(options, name) <= most:
            parser.error(
                f"--{name}: expected a number above 0 and at most {most}, found "
                f"{getattr(options, name)}"
            )
    return options


def _run(part: str, seconds: float, options: argparse.Namespace) -> Ended:
    """Run a part in its own process for at most `seconds`, then interrupt it as Ctrl-C does."""
    if seconds < LEAST:
        return Ended(part, "not begun: no time", 0.0, "")
    work = options.out / gpu_pack.WORK
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.benchmarks.gpu_part", part]
    command += ["--device", options.device, "--scale", str(options.scale)]
    command += ["--seconds", str(seconds)]
    command += ["--out", str(work), *(["--data", str(options.data)] if options.data else [])]
    began = time.monotonic()
    log = work / f"{part}.log"
    with (
        open(work / f"{part}.md", "w+") as said,
        open(log, "w") as errors,
        subprocess.Popen(command, stdout=said, stderr=errors, start_new_session=True) as process,
    ):
        try:
            code = process.wait(seconds)
            how = "failed" if code else "finished"
        except subprocess.TimeoutExpired:
            how = "interrupted: no time"
            _end(process)
        said.seek(0)
        lines = said.read()
    if how == "failed":
        lines += f"\n{_last_line(log)}\n"
    return Ended(part, how, time.monotonic() - began, lines)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a part and its workers, and kill those that do not end."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _record(options: argparse.Namespace) -> dict[str, object]:
    """Return what the numbers depend on."""
    card = torch.cuda.get_device_properties(0) if options.device == "cuda" else None
    names = ("torch", *(name for name in manifest.PACKAGES if name != "torch"))
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": card.name if card else manifest.processor(),
        "device_memory": card.total_memory if card else None,
        "cuda": torch.version.cuda,
        "scale": options.scale,
        "seconds": options.seconds,
        "commit": checkout.commit(),
        "sources": checkout.sources(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in names},
    }


def _save(record: dict[str, object], ended: list[Ended], out: Path) -> None:
    """Write results.md, manifest.json and the packed tables and states."""
    title = f"# {record['device']}, torch {torch.__version__}, Python {platform.python_version()}"
    scale = ""
    if record["scale"] != 1:
        scale = f"\n\nA rehearsal at {record['scale']} of the scale: times say nothing."
    parts = [f"## {one.part}: {one.how}, {one.seconds:.0f} s\n\n{one.said}" for one in ended]
    left = [part for part in PARTS if part not in {one.part for one in ended}]
    parts += [f"## {part}: not begun yet" for part in left]
    write_atomically(out / "results.md", ("\n\n".join([title + scale, *parts]) + "\n").encode())
    left_out = gpu_pack.pack(out)
    found = record | {"parts": [asdict(one) for one in ended], "left_out": left_out}
    write_atomically(out / "manifest.json", (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
