"""A rerun against its manifest: is the work the same, and what has changed around it?"""

import json
from collections.abc import Iterator
from typing import Any

from analysis.results.shape import short

DECISIVE = ("device", "native", "arithmetic")  # of the machine: its other entries change no bit


def work(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest that must be the same for the work to be the same."""
    images = manifest["data"]
    data = images and {name: images[name] for name in ("name", "content_sha256")}
    return {name: manifest[name] for name in ("profile", "options", "experiments")} | {"data": data}


def surroundings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest on which bits may depend, though the work is the same."""
    machine = {name: value for name, value in manifest["machine"].items() if name in DECISIVE}
    code = {name: manifest[name] for name in ("commit", "sources") if name in manifest}
    return code | {"versions": manifest["versions"], "machine": machine}


def differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each entry that is not the same in JSON."""
    then, now = (json.loads(json.dumps(value)) for value in (then, now))
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            there = f"{path}.{name}" if path else name
            if name in then and name in now:
                yield from differences(then[name], now[name], there)
            else:
                yield f"{there}: {'only then' if name in then else 'only now'}"
    elif then != now:
        yield f"{path}: {short(then)} then, {short(now)} now"
