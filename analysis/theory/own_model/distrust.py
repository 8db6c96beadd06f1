"""The meaning of a certificate, in sentences: what is wrong, where, and the way out."""

from collections.abc import Iterable, Sequence
from itertools import chain

import pandas as pd
import torch

from analysis.theory.own_model.certify import CHANNELS, Certificate, Key, Setting
from analysis.theory.own_model.checks import check_loss
from analysis.theory.own_model.locate import KINK_HERE, culprits, heard, own_rules
from analysis.theory.own_model.loops import forward, gradients_met
from analysis.theory.own_model.quantities import Quantities
from analysis.theory.own_model.quotients import DIFFERS, KINK, STOPPED, UNDECIDED, Agreement
from analysis.theory.own_model.watching import at_zero, kinks

# Evaluations in search of noise where channels differ: noise in one call of fifty is missed once
# in 400 times.
MORE_EVALUATIONS = 300


def explain(
    setting: Setting, certificate: Certificate, found: Quantities, expansion: pd.DataFrame
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences on what to distrust, and notes on what is right but may surprise."""
    verdicts = {a.verdict for a in chain.from_iterable(certificate.values())}
    jumps = _jumps_here(setting, certificate)
    if DIFFERS in verdicts or jumps:
        for i, on_minibatch in enumerate(setting.pool):
            check_loss(on_minibatch, setting.phi, i, MORE_EVALUATIONS // len(setting.pool) + 1)
    distrust = []
    if DIFFERS in verdicts:
        distrust.append(_of_differences(setting, certificate))
    if jumps:
        distrust.append(_of_kinks(setting))
    if STOPPED in verdicts or (setting.stops and not certificate):
        distrust.append(_of_stops(setting))
    if any(loss.carries_state for loss in setting.pool):
        distrust.append(
            "the loss changes its own state from call to call. Here each evaluation starts from "
            "the same state, so that g_2 … and MAML are not those of a loop that keeps it."
        )
    return tuple(distrust), tuple(_notes(setting, certificate, found, expansion))


def _of_differences(setting: Setting, certificate: Certificate) -> str:
    withheld = [key for key in certificate if certificate.differs(key)]
    order = 2 + any(key[0] == "terms" and key[2] > 1 for key in _differing(certificate))
    if any(key[0] == "g_bar" for key in _differing(certificate)):
        order = 1
    places = "; ".join(culprits(setting.model, setting.pool[0], setting.phi, order)) or _nowhere(
        setting, certificate
    )
    if not withheld:
        every = chain.from_iterable(certificate.values())
        channels = {a.channel.split(",")[0] for a in every if a.verdict == DIFFERS}
        return (
            f"torch's {' and '.join(sorted(channels))} is wrong here: {places}. "
            "What is taken instead agrees with differences; elsewhere do not rely on torch in that."
        )
    return (
        f"{_list(withheld)} differ from their channels and are withheld (nan): {places}. Write "
        "that part in elementary operations of torch, or correct its derivative; certify=False "
        "gives the numbers all the same."
    )


def _of_kinks(setting: Setting) -> str:
    named = culprits(setting.model, setting.pool[0], setting.phi, 1)
    at = [name for name in named if KINK_HERE in name]
    all_of_them = dict.fromkeys(kinks(heard(setting.model, setting.pool[0], setting.phi)))
    where = ", ".join(at or all_of_them) or "no layer alone shows it"
    return (
        f"the slope of the loss jumps at this very point ({where}), where a gradient is one of "
        "several. Take another point, such as biases that are not 0, or a smooth function."
    )


def _of_stops(setting: Setting) -> str:
    return (
        f"gradients are stopped: {', '.join(setting.stops)}. A backward pass holds the stopped "
        "value constant, so that the gradients here are what SGD meets, and MAML's what autograd "
        "makes of the loop, but no slopes of the loss; the theorem's coefficients need not hold. "
        "Remove the stop if it is not meant."
    )


def _notes(
    setting: Setting, certificate: Certificate, found: Quantities, expansion: pd.DataFrame
) -> list[str]:
    notes = []
    if undecided := _of(
        certificate, "g_bar", "exact", "terms", "avg_grad_inner", "coefficients", verdict=UNDECIDED
    ):
        notes.append(
            f"step and round-off hide whether {_list(undecided)} are right; float64 shows more."
        )
    if kinked := _of(certificate, "g_bar", "exact", "terms", "avg_grad_inner", verdict=KINK):
        notes.append(
            f"kinks near this point hide whether {_list(kinked)} are right; float64 looks nearer "
            "to it."
        )
    if found.way is None:
        notes.append(
            "terms and AvgGradInner are differences, as torch has no derivative of these stopped "
            "gradients."
        )
    elif found.way is not forward and not setting.stops:
        notes.append(f"derivatives go by {CHANNELS[found.way]}.")
    if any(loss.alters_its_data for loss in setting.pool):
        notes.append("the model alters its inputs or targets in place; each evaluation got copies.")
    if spoiled := _spoiled(expansion):
        where = ", ".join(_kinks_on_the_way(setting))
        cause = f"kinks lie on the way ({where})" if where else "alpha is too large for the series"
        notes.append(
            f"the slopes of {', '.join(spoiled)} fall short of n + 1: {cause}; take a smaller "
            "alpha."
        )
    return notes


def _of(certificate: Certificate, *quantities: str, verdict: str) -> list[Key]:
    return [
        key for key in certificate if key[0] in quantities and certificate.verdict(key) == verdict
    ]


def _jumps_here(setting: Setting, certificate: Certificate) -> bool:
    """Return whether the slope of a loss jumps at the point itself.

    In float32 the shortest step also reaches kinks that are only near. There some number must be 0
    where a function has a kink at 0.
    """
    held = [certificate[key] for key in _of(certificate, "g_bar", "exact", verdict=KINK)]
    if not any(a.decides and a.here for a in chain.from_iterable(held)):
        return False
    if setting.phi.dtype == torch.float64:
        return True
    return any(any(at_zero(heard(setting.model, loss, setting.phi))) for loss in setting.pool)


def _kinks_on_the_way(setting: Setting) -> list[str]:
    """Return the functions with kinks between the first and the last point of the loop.

    Those with a kink at 0 are included only if a number crosses it in the loop's last minibatch.
    """
    points, _ = gradients_met(setting.steps, setting.phi, setting.alpha)
    first = heard(setting.model, setting.steps[-1], setting.phi)
    last = heard(setting.model, setting.steps[-1], points[setting.k - 1])
    return list(dict.fromkeys(kinks(first, last)))


def _spoiled(expansion: pd.DataFrame) -> list[str]:
    """Return the gradients with a remainder that falls too slowly.

    It falls by half a power of alpha less than it should, or more.
    """
    short = expansion[(expansion.gradient != "g_1") & (expansion.slope < expansion.order + 0.5)]
    return list(dict.fromkeys(short.gradient))


def _differing(certificate: Certificate) -> list[Key]:
    return [key for key, agreements in certificate.items() if _any_differs(agreements)]


def _any_differs(agreements: Iterable[Agreement]) -> bool:
    return any(a.verdict == DIFFERS for a in agreements)


def _nowhere(setting: Setting, certificate: Certificate) -> str:
    of_gradients = certificate.get(("g_bar", "", 0), [])
    if any(a.verdict == DIFFERS and a.channel == "the module itself" for a in of_gradients):
        return (
            "the module itself has another gradient, as with a hook on a parameter, numbers "
            "written through .data, or parameters that the loss or the module reaches past its "
            "attributes"
        )
    together = "no layer alone shows it"
    calls = heard(setting.model, setting.pool[0], setting.phi)
    suspects = [
        *(f"the backward pass of {rule}" for rule in own_rules(setting.pool[0], setting.phi)),
        *(call.place for call in calls if call.name == "register_hook"),
        *(f"the kink of {name}" for name in at_zero(calls)),
    ]
    return f"{together}; look at {', '.join(dict.fromkeys(suspects))}" if suspects else together


def _list(keys: Sequence[Key]) -> str:
    """Return quantities in words, such as "g_bar, terms of order 2 (g_2, MAML)".

    Each stands with the gradients that are meant.
    """
    gradients: dict[str, list[str]] = {}
    for quantity, gradient, order in keys:
        name = f"terms of order {order}" if quantity == "terms" else quantity
        gradients.setdefault(name, []).extend([gradient] if gradient else [])
    return ", ".join(f"{name} ({', '.join(of)})" if of else name for name, of in gradients.items())
