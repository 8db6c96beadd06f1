"""The work of a convolutional block in C, used where a C compiler is available; never needed.

The sources in this folder are compiled once for this processor and type of number, which takes some
seconds. The library is kept in the user's cache under their digest. The loops compute what the
tensor code in `convolutions` and `layers` computes, to round-off, for finite parameters; a ReLU in
C turns NaN into 0. Convolutions are computed without writing out patches, and normalization in few
passes over memory. They also compute what else `gradients` needs. REPTILE_NATIVE=0 switches them
off. CC names another compiler, with options if it needs any.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reptile_core.files import write_atomically

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-lm")
SQUARE = 16  # convolutions take channels in multiples of this
TAPS = 9  # as in shape.h
# Types of number, and the compiler's flags for each: see real.h.
TYPES = {torch.float32: (), torch.float64: ("-DDOUBLE",)}

COMPILE_SECONDS = 600  # a machine may be busy, and without the loops the bits are others

ACTIVATIONS = {"relu": 0, "softplus": 1, "tanh": 2}  # as in activation.h

NativeCall = Callable[[], None]


class Shape(ctypes.Structure):
    """An extent as in shape.h."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            *("lanes", "n", "height", "width", "channels", "stride"),
            *("out_height", "out_width", "before_rows", "before_columns", "filters"),
        )
    ]


Argument = Tensor | Sequence[Tensor] | Shape | int | float | None


@lru_cache
def library(dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """Return the loops compiled for this type of number, or None where they are not available.

    Warns where a compiler was asked for and is not found, or does not compile them.
    """
    if os.environ.get("REPTILE_NATIVE") == "0" or os.name != "posix":
        return None
    name, *options = shlex.split(os.environ.get("CC", "")) or ["cc"]
    compiler = shutil.which(name)
    if compiler is None:
        if os.environ.get("CC"):
            warnings.warn(f"native: expected a compiler in CC, found {name!r}", stacklevel=2)
        return None
    flags = FLAGS + TYPES[dtype]
    sources = b"".join(source.read_bytes() for source in SOURCES)
    by = " ".join([compiler, *options])
    built_by = repr((flags, by, platform.machine(), _abilities()))
    key = hashlib.sha256(sources + built_by.encode()).hexdigest()[:16]
    import pooch  # here, because nothing else that trains needs it

    built = Path(pooch.os_cache("reptile-verification")) / f"native-{key}.so"
    if os.path.exists(built):
        try:
            return ctypes.CDLL(str(built))
        except OSError as error:
            warnings.warn(f"native: {built} is damaged and will be rebuilt: {error}", stacklevel=2)
    try:
        target = Path(_own_folder().name) / built.name
        units = [str(source) for source in SOURCES if source.suffix == ".c"]
        command = [compiler, *options, *units, "-o", str(target), *flags]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        return ctypes.CDLL(str(_in_cache(target, built)))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
        warnings.warn(
            f"native: {by} does not compile the loops, and training is slower: {error} {said}",
            stacklevel=2,
        )
        return None


@lru_cache
def _own_folder() -> tempfile.TemporaryDirectory:
    """Return a folder of this process, which is removed when the process ends."""
    return tempfile.TemporaryDirectory()


def _in_cache(library: Path, place: Path) -> Path:
    """Copy a library to its place in the cache, and return where it can be loaded from.

    Warns where the cache cannot be written.
    """
    try:
        write_atomically(place, library.read_bytes())
    except OSError as error:
        warnings.warn(
            f"native: cannot write {place}, so every start compiles the loops: {error}",
            stacklevel=3,
        )
        return library
    return place


def supports_tensor(x: Tensor) -> bool:
    """Return whether the loops can take this tensor."""
    return x.dtype in TYPES and x.device.type == "cpu" and plain(x) and library(x.dtype) is not None


def plain(x: Tensor) -> bool:
    """Return whether this tensor is neither in a torch.func transform nor in forward mode."""
    in_transform = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return not in_transform and torch.autograd.forward_ad._current_level < 0


def supports_channels(*channels: int) -> bool:
    """Return whether convolutions and products take these numbers of channels."""
    return all(count % SQUARE == 0 for count in channels)


def prepare(name: str, *arguments: Argument) -> NativeCall:
    """Prepare a call of a loop with these arguments, to be made as often as wanted.

    Tensors are passed as pointers to their numbers, and the first one decides the type of number.
    Sequences of tensors are passed as lists of pointers, and None as a null pointer. Raises
    ValueError for a tensor that is not contiguous.
    """
    tensors = list(chain.from_iterable(map(_tensors, arguments)))
    for a in tensors:
        if not a.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous tensors, found strides {a.stride()} for shape "
                f"{tuple(a.shape)}"
            )
    function, raw = getattr(library(tensors[0].dtype), name), tuple(map(_raw, arguments))

    def call(_: object = arguments) -> None:  # holds on to the tensors
        function(*raw)

    return call


def call(name: str, *arguments: Argument) -> None:
    """Call a loop once."""
    prepare(name, *arguments)()


def meetings(shape: Shape) -> Tensor:
    """Allocate room for the meetings of every position of an input or an output."""
    return torch.zeros(shape.height * shape.width * (2 * TAPS + 1), dtype=torch.long)


def packing(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Allocate room for what `correlate` packs, and for the pairs of it that meet.

    It packs images and outputs.
    """
    inside, outside = shape.height * shape.width, shape.out_height * shape.out_width
    packed = torch.zeros(shape.n * (inside * shape.channels + outside * shape.filters), dtype=dtype)
    return packed, torch.zeros(2 * TAPS * outside, dtype=torch.long)


def normalize_relu(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (out, normalized, rstd) of batch norm with a ReLU.

    x: (*lanes, rows, channels).
    scale, shift: (*lanes, 1, channels).
    """
    out, normalized, rstd = torch.empty_like(x), torch.empty_like(x), torch.empty_like(scale)
    call("normalize_relu", x, scale, shift, normalized, rstd, out, _scratch(x), eps, *_extent(x))
    return out, normalized, rstd


def normalize_relu_backward(
    g: Tensor, out: Tensor, normalized: Tensor, rstd: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in x, scale and shift."""
    g_x, g_scale, g_shift = torch.empty_like(g), torch.empty_like(scale), torch.empty_like(scale)
    arrays = (g, out, normalized, rstd, scale, g_x, g_scale, g_shift, _scratch(g))
    call("normalize_relu_backward", *arrays, *_extent(g))
    return g_x, g_scale, g_shift


def product_relu(x: Tensor, weight: Tensor) -> Tensor:
    """Return max(0, x @ weight) for x (*lanes, rows, size) and weight (*lanes, size, filters)."""
    out = x.new_empty(*x.shape[:-1], weight.shape[-1])
    call("product_relu", x, weight, out, *_extent(x), weight.shape[-1])
    return out


def product_relu_backward(g: Tensor, out: Tensor, x: Tensor) -> Tensor:
    """Return the gradient in weight."""
    g_weight = g.new_empty(*x.shape[:-2], x.shape[-1], g.shape[-1])
    call("product_relu_backward", g, out, x, g_weight, *_extent(x), g.shape[-1])
    return g_weight


def adam(
    phi: Tensor,
    g: Tensor,
    v: Tensor,
    *,
    beta2: float,
    correction: float,
    learning_rate: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return (phi, v) after a step of Adam with beta1 = 0, v corrected by 1 / correction."""
    after, v_after = torch.empty_like(phi), torch.empty_like(v)
    call("adam", phi, g, v, after, v_after, phi.numel(), beta2, correction, learning_rate, eps)
    return after, v_after


def _tensors(argument: Argument) -> Sequence[Tensor]:
    if isinstance(argument, Tensor):
        return [argument]
    return argument if isinstance(argument, tuple | list) else []


def _raw(argument: Argument) -> object:
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Sequence):
        return (ctypes.c_void_p * len(argument))(*(tensor.data_ptr() for tensor in argument))
    if isinstance(argument, Shape):
        return ctypes.byref(argument)
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_double(argument)


def _extent(x: Tensor) -> tuple[int, int, int]:
    *lanes, rows, channels = x.shape
    return prod(lanes), rows, channels


def _scratch(x: Tensor) -> Tensor:
    return x.new_empty(8 * x.shape[-1])


def _abilities() -> str:
    """Return what this processor can do, where the system says so.

    Code made for one processor may not run on another.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.lower().startswith(("flags", "features")):
            return line
    return platform.processor()
