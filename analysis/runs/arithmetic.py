"""Kinds of machine: what decides the bits where code, configuration and data are the same.

These are the vector instructions that the machine has, those that torch uses, the vendor's path
that its math library takes, and the compiled loops, which are told apart by their content. The name
of a processor decides nothing.
"""

import hashlib
import platform
import re
from functools import cache
from pathlib import Path

import torch

from analysis.runs.job import record_digest
from reptile_core import native

# Flags of /proc/cpuinfo that change which instructions are used, and with them how sums are ordered
# and rounded.
VECTORS = re.compile(r"(avx|fma|f16c|sse4|amx|asimd|sve|neon)\w*")
# How compilers record their name and version in their output.
COMPILER = re.compile(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+")
NOT_RECORDED = "not recorded"  # the kind of results from before kinds were recorded


@cache
def arithmetic(device: str = "cpu") -> dict[str, str | None]:
    """Return what decides the bits on a device ("cpu" or "cuda"), by name.

    loops: SHA-256 (16 hex digits) of the compiled loops; None for none.
    compiler: its name and version, as it records itself in the loops.
    gpu: its name; None on a CPU.
    """
    library = native.library()
    content = b"" if library is None else Path(library._name).read_bytes()
    compiler = COMPILER.search(content)
    flags = _of_processor("flags", "features").split()
    return {
        "vendor": _of_processor("vendor_id", "cpu implementer"),
        "vectors": " ".join(sorted(filter(VECTORS.fullmatch, flags))),
        "torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
        "loops": hashlib.sha256(content).hexdigest()[:16] if content else None,
        "compiler": compiler[0].decode() if compiler else None,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


@cache
def kind(device: str = "cpu") -> str:
    """Return a short name of this machine's arithmetic, such as "AVX2-1f3a9c2e".

    Two machines of one kind give the same bits.
    """
    found = arithmetic(device)
    name = (found["gpu"] or torch.backends.cpu.get_cpu_capability()).replace(" ", "-")
    return f"{name}-{record_digest(found)[:8]}"


def processor() -> str:
    """Return the name of the processor, for people."""
    return _of_processor("model name") or platform.processor() or "unknown"


@cache
def _of_processor(*names: str) -> str:
    """Return the value of the first of these names in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip().lower() in names), "")
