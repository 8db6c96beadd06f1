"""A `torch.nn.Module` as a network of the core: a function of (phi, x), with lanes.

The module is copied, and no call changes it. Batch norm in training mode uses the statistics of
the batch at hand, in training as in evaluation, as in the paper's networks. Its running
statistics are dropped.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from reptile_core import native
from reptile_core.networks import Network

EVALUATIONS = 20  # to find noise: noise in one call of two is missed once in 500,000 times
CLOSE = 1e-3  # relative; far above round-off in float32, far below what another function gives


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnNetwork(Network):
    """A module as a network.

    phi starts at the module's own parameters, whatever the seed of a run.

    outputs: numbers per input, the n_way of its tasks.
    identity: digest of the module's text, parameters and buffers, which stands for it in a run's
        key. It does not see the code of a forward method; change `name` where that changes.
    numbers: how many numbers its layers give for one input, to estimate memory.
    together: whether lanes go through one vmap.
    channels_last: whether it takes images whose channels are last in memory, which a CPU convolves
        a third faster.
    """

    module: nn.Module
    outputs: int
    identity: str
    numbers: int
    together: bool
    channels_last: bool
    _copies: dict[tuple, nn.Module] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnNetwork) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_copies": {}}

    def __call__(
        self, phi: Float[Tensor, "*lanes P"], x: Tensor
    ) -> Float[Tensor, "*lanes batch out"]:
        """Return the logits of x, (*lanes, batch, *takes), lane by lane."""
        self.check(x)
        assert self.takes is not None
        inner = x.ndim - 1 - len(self.takes)
        of_lane = x.shape[inner:]
        lanes = torch.broadcast_shapes(phi.shape[:-1], x.shape[:inner])
        count = lanes.numel()
        points = phi.expand(*lanes, -1).reshape(count, -1) if phi.ndim > 1 else None
        inputs = x.expand(*lanes, *of_lane).reshape(count, *of_lane) if inner else None
        if count == 1:
            one = self._alone(phi.reshape(-1), x.reshape(of_lane))
            return one.reshape(*lanes, *one.shape)
        dims = (None if points is None else 0, None if inputs is None else 0)
        given = (phi if points is None else points, x if inputs is None else inputs)
        if self.together:
            found = vmap(self._one, dims)(*given)
        else:
            found = self._one_by_one(dims, count, *given)
        return found.reshape(*lanes, *found.shape[1:])

    def initialize(self, seed: int, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, " P"]:
        """Return the module's own parameters, whatever the seed."""
        return _flat(self.module).to(dtype)

    def as_module(self, phi: Float[Tensor, " P"]) -> nn.Module:
        """Return a copy of the module with the parameters phi, on phi's device and in its dtype."""
        made = copy.deepcopy(self.module).to(phi.device, phi.dtype)
        values = self.unflatten(phi.detach())
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name in values:
                    parameter.copy_(values[name])
        return made

    def _alone(self, phi: Float[Tensor, " P"], x: Tensor) -> Tensor:
        """Return the logits of one lane."""
        fast = self.channels_last and x.device.type == "cpu" and phi.dtype == torch.float32
        if fast and native.plain(phi) and native.plain(x):  # vmap knows no other layout
            x = x.to(memory_format=torch.channels_last)
        return self._one(phi, x)

    def _one(self, phi: Float[Tensor, " P"], x: Tensor) -> Tensor:
        return functional_call(self._on(x.device, phi.dtype), self.unflatten(phi), (x,))

    def _one_by_one(
        self, dims: tuple[int | None, int | None], count: int, phi: Tensor, x: Tensor
    ) -> Tensor:
        of_phi, of_x = dims
        found = []
        for i in range(count):
            phi_of_lane = phi if of_phi is None else phi[i]
            x_of_lane = x if of_x is None else x[i]
            found.append(self._alone(phi_of_lane, x_of_lane))
        return torch.stack(found)

    def _on(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return the copy of the module for a device, a dtype and the current thread.

        A thread needs its own copy, as a call exchanges the copy's parameters.
        """
        key = device, dtype, get_ident()
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self.module).to(device, dtype)
        return self._copies[key]


def of_module(module: nn.Module, takes: tuple[int, ...], name: str | None = None) -> OwnNetwork:
    """Return a module as a network; see `Network.of`.

    Raises ValueError or TypeError where it is not a function of (phi, x).
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, found {type(module).__name__}")
    takes = tuple(takes)
    if any(map(is_lazy, [*module.parameters(), *module.buffers()])):
        raise ValueError(
            "module: expected parameters with shapes, found lazy layers; call the module once on "
            "inputs"
        )
    shapes = {key: tuple(p.shape) for key, p in module.named_parameters() if p.requires_grad}
    if not shapes:
        raise ValueError("module: expected parameters that require a gradient, found none")
    module = _without_running_statistics(module)
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = next(p for p in module.parameters() if p.requires_grad)
        x = torch.rand(3, *takes, dtype=first.dtype, device=first.device)
        outputs, numbers = _outputs(module, x)
        _check_noise(module, x)
    _check_state(module, kept)
    network = OwnNetwork(
        name=name or type(module).__name__,
        shapes=shapes,
        # A partial can be sent to worker processes, a closure cannot.
        function=partial(functional_call, module),
        takes=takes,
        module=module,
        outputs=outputs,
        identity=_identity(name or type(module).__name__, module, takes),
        numbers=numbers,
        together=True,
        channels_last=False,
    )
    _check_parameters(network, x)
    object.__setattr__(network, "together", _goes_together(network, x))
    object.__setattr__(network, "channels_last", _goes_with_channels_last(network, x))
    return network


def _without_running_statistics(module: nn.Module) -> nn.Module:
    made = copy.deepcopy(module)
    for layer in made.modules():
        if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return made


def _outputs(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return how many numbers a module gives for one input, and how many all its layers give."""
    numbers = 0

    def add(_: nn.Module, __: Any, result: Any) -> None:
        nonlocal numbers
        numbers += result.numel() if isinstance(result, Tensor) else 0

    leaves = [layer for layer in module.modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(add) for layer in leaves]
    try:
        with torch.no_grad():
            found = module(x)
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else "no message"
        raise ValueError(
            f"takes: expected the shape of one input of the module, found {tuple(x.shape[1:])} "
            f"({type(error).__name__}: {message})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if (
        not isinstance(found, Tensor)
        or found.ndim != 2
        or len(found) != len(x)
        or found.shape[1] < 2
    ):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"module: expected logits (batch, classes) of {len(x)} inputs, found {what}"
        )
    return found.shape[1], max(numbers // len(x), 1)


def _check_noise(module: nn.Module, x: Tensor) -> None:
    """Raise ValueError where a module draws random numbers or keeps a state.

    Any draw of torch's own on the CPU shows, however small its effect is.
    """
    before = torch.get_rng_state()
    with torch.no_grad():
        first, *others = [module(x) for _ in range(EVALUATIONS)]
    if not first.isfinite().all():
        raise ValueError(
            "module: expected finite outputs, found others, of inputs from 0 to 1; are its "
            "parameters finite?"
        )
    drawn = not torch.equal(before, torch.get_rng_state())
    if not drawn and all(_alike(first, other) for other in others):
        return
    layers = [
        f"'{key}' ({type(layer).__name__})"
        for key, layer in module.named_modules()
        if layer.training and "dropout" in type(layer).__name__.lower()
    ]
    where = ", ".join(layers) or "a layer that draws random numbers or keeps a state"
    raise ValueError(
        f"module: expected a function of parameters and inputs, found noise in {where}; call "
        ".eval() on it"
    )


def _check_state(module: nn.Module, kept: dict[str, Tensor]) -> None:
    now = module.state_dict()
    changed = [key for key, value in now.items() if not torch.equal(value, kept[key])]
    if changed:
        raise ValueError(
            "module: expected a forward pass that keeps no state, found that it changes "
            f"{', '.join(changed)}; call .eval() on these layers, or keep no running statistics"
        )


def _check_parameters(network: OwnNetwork, x: Tensor) -> None:
    """Raise ValueError where a module reaches its parameters other than by its attributes.

    Such a module would not see phi, or not all of it.
    """
    parameters = network.unflatten(_flat(network.module))
    values = {key: value.detach().requires_grad_() for key, value in parameters.items()}
    total = functional_call(network.module, values, (x,)).sum()
    parts = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    if unused := [key for key, part in zip(values, parts, strict=True) if part is None]:
        raise ValueError(
            "module: expected outputs that depend on every parameter, found none on "
            f"{', '.join(unused)}; freeze what is not used (requires_grad_(False)), and reach the "
            "others by the module's attributes"
        )
    phi = _flat(network.module)
    moved = phi + 0.1 * torch.rand(phi.shape, generator=torch.Generator().manual_seed(0)).to(phi)
    with torch.no_grad():
        expected = network.as_module(moved)(x)
        found = _attempt(lambda: network._one(moved, x))
    if found is None or not _alike(expected, found):
        raise ValueError(
            "module: expected all parameters to be reached by the module's attributes, found "
            "another function where they are exchanged"
        )


def _goes_together(network: OwnNetwork, x: Tensor) -> bool:
    """Return whether vmap computes lanes as the module computes them one by one."""
    phi = torch.stack([_flat(network.module)] * 2) * torch.tensor([[1.0], [0.9]]).to(x)
    inputs = torch.stack([x, 1 - x])

    def gradient(call: Callable[[Tensor], Tensor]) -> Tensor:
        point = phi.clone().requires_grad_()
        return torch.autograd.grad(call(point).log_softmax(-1)[..., 0].sum(), point)[0]

    expected = gradient(lambda p: network._one_by_one((0, 0), 2, p, inputs))
    found = _attempt(lambda: gradient(lambda p: vmap(network._one)(p, inputs)))
    return found is not None and _alike(expected, found)


def _goes_with_channels_last(network: OwnNetwork, x: Tensor) -> bool:
    """Return whether images may have their channels last in memory.

    A module that takes views of its images may not support that.
    """
    if x.ndim != 4 or not any(isinstance(layer, nn.Conv2d) for layer in network.module.modules()):
        return False
    phi = _flat(network.module)
    with torch.no_grad():
        found = _attempt(lambda: network._one(phi, x.to(memory_format=torch.channels_last)))
        return found is not None and _alike(network._one(phi, x), found)


def _attempt(call: Callable[[], Tensor]) -> Tensor | None:
    """Return the result of a call, or None where torch cannot compute it.

    vmap and functional_call raise errors of many kinds.
    """
    try:
        return call()
    except Exception:
        return None


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= CLOSE * one.norm())


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad]).clone()


def _identity(name: str, module: nn.Module, takes: tuple[int, ...]) -> str:
    modes = [layer.training for layer in module.modules()]
    found = hashlib.sha256(f"{name}\n{module}\n{takes}\n{modes}".encode())
    for key, value in module.state_dict().items():
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return f"{name}: {found.hexdigest()[:20]}"
