"""What a convolutional block does beside its matrix products, in C, where a C compiler is at hand; never needed.

`native.c` is compiled once, in about a second, and kept in the user's cache under the digest of its source. It computes
what the tensor code in `layers` computes: patches and their transpose to the bit, sums to round-off. REPTILE_NATIVE=0
does without it.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reptile_core.files import write_atomically

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC", "-lm")


class Shape(ctypes.Structure):
    """As in native.c."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in ("n", "height", "width", "channels", "stride", "out_height", "out_width", "rows", "columns")
    ]


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where they cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("REPTILE_NATIVE") == "0" or compiler is None or os.name != "posix":
        return None
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + repr((FLAGS, compiler, platform.machine())).encode()).hexdigest()[:16]
    import pooch  # here, because nothing else that trains needs it

    built = Path(pooch.os_cache("reptile-verification")) / f"native-{key}.so"
    try:
        if not built.exists():
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / built.name
                command = [compiler, str(SOURCE), "-o", str(target), *FLAGS]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                write_atomically(built, target.read_bytes())
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        return None


def serves(x: Tensor) -> bool:
    """Can the loops take this tensor: float32 on the CPU, and neither in a torch.func transform nor in forward mode?"""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and torch.autograd.forward_ad._current_level < 0
        and library() is not None
    )


def patches(x: Tensor, out: Tensor, shape: Shape) -> None:
    """Fill `out` with the patches of `x`, both contiguous."""
    _call("patches", x, out, ctypes.byref(shape))


def fold(patch: Tensor, x: Tensor, row_taps: list[int], column_taps: list[int], shape: Shape) -> None:
    """Fill `x` with the sums of `patch`, both contiguous, adding taps in the order given."""
    taps = ctypes.c_long * len(row_taps)
    scratch = (ctypes.c_long * (4 * (shape.height + shape.width) + shape.channels))()
    _call("fold", patch, x, scratch, taps(*row_taps), taps(*column_taps), ctypes.byref(shape))


def normalize_relu(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out, normalized, rstd) for x (*lanes, rows, channels) and scale, shift (*lanes, 1, channels)."""
    out, normalized, rstd = torch.empty_like(x), torch.empty_like(x), torch.empty_like(scale)
    _call("normalize_relu", x, scale, shift, normalized, rstd, out, _scratch(x), ctypes.c_double(eps), *_extent(x))
    return out, normalized, rstd


def normalize_relu_backward(
    g: Tensor, out: Tensor, normalized: Tensor, rstd: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x, scale and shift."""
    g_x, g_scale, g_shift = torch.empty_like(g), torch.empty_like(scale), torch.empty_like(scale)
    arrays = (g, out, normalized, rstd, scale, g_x, g_scale, g_shift, _scratch(g))
    _call("normalize_relu_backward", *arrays, *_extent(g))
    return g_x, g_scale, g_shift


def shift_relu(x: Tensor, shift: Tensor) -> Tensor:
    """max(0, x + shift) for x (*lanes, rows, channels) and shift (*lanes, 1, channels)."""
    out = torch.empty_like(x)
    _call("shift_relu", x, shift, out, *_extent(x))
    return out


def shift_relu_backward(g: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in x and shift."""
    g_x, g_shift = torch.empty_like(g), g.new_empty(*g.shape[:-2], 1, g.shape[-1])
    _call("shift_relu_backward", g, out, g_x, g_shift, _scratch(g), *_extent(g))
    return g_x, g_shift


def _call(name: str, *arguments: object) -> None:
    """Call a loop with tensors as pointers: ValueError for one whose numbers do not lie one after the other."""
    for a in arguments:
        if isinstance(a, Tensor) and not a.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous tensors, found strides {a.stride()} for shape {tuple(a.shape)}"
            )
    getattr(library(), name)(*(_pointer(a) if isinstance(a, Tensor) else a for a in arguments))


def _extent(x: Tensor) -> tuple[ctypes.c_long, ...]:
    *lanes, rows, channels = x.shape
    return ctypes.c_long(prod(lanes)), ctypes.c_long(rows), ctypes.c_long(channels)


def _scratch(x: Tensor) -> Tensor:
    return x.new_empty(8 * x.shape[-1])


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
