"""The shape of a JSON document: what types and values may stand where, and the first place where one differs.

A shape is a type, a tuple of what may stand there, {str: ...} for any keys, [...] for any number of entries, or a dict
of the keys themselves, where "name?" may be missing.
"""

import json
from typing import Any


def fault(value: Any, shape: Any, path: str = "") -> str | None:
    """Return the first place where a value is not of this shape, in words; None where there is none."""
    where = path or "the whole"
    if isinstance(shape, tuple):
        faults = [fault(value, one, path) for one in shape]
        if None in faults:
            return None
        inside = [words for words, one in zip(faults, shape, strict=True) if type(one) is type(value) is dict]
        if inside:  # which says where in it
            return inside[0]
        return f"{where}: expected {' or '.join(map(_words, shape))}, found {short(value)}"
    if isinstance(shape, type):
        right = isinstance(value, shape) and not (isinstance(value, bool) and shape in (int, float))
        return None if right else f"{where}: expected {_words(shape)}, found {short(value)}"
    if type(value) is not type(shape) or (not isinstance(shape, list | dict) and value != shape):
        return f"{where}: expected {_words(shape)}, found {short(value)}"
    if isinstance(shape, list):
        parts = [(f"{path}[{i}]", entry, shape[0]) for i, entry in enumerate(value)]
    elif not isinstance(shape, dict):
        return None
    elif str in shape:
        parts = [(f"{path}.{name}", entry, shape[str]) for name, entry in value.items()]
    else:
        known = {name.removesuffix("?"): entry for name, entry in shape.items()}
        missing = [name for name in shape if not name.endswith("?") and name not in value]
        strange = [name for name in value if name not in known]
        if missing or strange:
            found = f"none of the name {missing[0]!r}" if missing else f"the unknown {short(strange[0])}"
            return f"{where}: expected the entries of its schema, found {found}"
        parts = [(f"{path}.{name}".lstrip("."), entry, known[name]) for name, entry in value.items()]
    return next((words for name, entry, one in parts if (words := fault(entry, one, name)) is not None), None)


def short(value: Any) -> str:
    """Return a value as JSON of at most 61 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _words(shape: Any) -> str:
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", object: "anything"}
    if isinstance(shape, type):
        return names[shape]
    return "a list" if isinstance(shape, list) else "an object" if isinstance(shape, dict) else json.dumps(shape)
