"""The shape of a JSON document: the types and values that may stand where.

A shape is a type, a tuple of what may stand there, {str: ...} for any keys, [...] for any number of
entries, or a dict of the keys themselves, where "name?" may be missing. `fault` finds the first
place where a document differs from its shape.
"""

import json
from typing import Any

WHOLE = "the whole"  # names the document itself, where the path is empty


def fault(value: Any, shape: Any, path: str = "") -> str | None:
    """Return in words the first place where a value is not of this shape, or None."""
    if isinstance(shape, tuple):
        return _fault_of_choice(value, shape, path)
    if not _is_like(value, shape):
        return f"{path or WHOLE}: expected {_words(shape)}, found {short(value)}"
    if isinstance(shape, list):
        parts = [(f"{path}[{i}]", entry, shape[0]) for i, entry in enumerate(value)]
    elif not isinstance(shape, dict):
        return None
    elif str in shape:
        parts = [(f"{path}.{name}", entry, shape[str]) for name, entry in value.items()]
    else:
        if found := _wrong_name(value, shape):
            return f"{path or WHOLE}: expected the entries of its schema, found {found}"
        known = {name.removesuffix("?"): entry for name, entry in shape.items()}
        parts = [
            (f"{path}.{name}".lstrip("."), entry, known[name]) for name, entry in value.items()
        ]
    for name, entry, shape_of_entry in parts:
        words = fault(entry, shape_of_entry, name)
        if words is not None:
            return words
    return None


def _fault_of_choice(value: Any, shapes: tuple[Any, ...], path: str) -> str | None:
    """Return None where one of the shapes is right, else what is wrong.

    That is the fault inside an object that could be meant, or what was expected.
    """
    faults = [fault(value, one, path) for one in shapes]
    if None in faults:
        return None
    for words, one in zip(faults, shapes, strict=True):
        if type(one) is type(value) is dict:  # the words say where in it
            return words
    return f"{path or WHOLE}: expected {' or '.join(map(_words, shapes))}, found {short(value)}"


def _is_like(value: Any, shape: Any) -> bool:
    """Return whether a value is of this type, or equal to this constant.

    For lists and objects, return whether it is one.
    """
    if isinstance(shape, type):
        return isinstance(value, shape) and not (isinstance(value, bool) and shape in (int, float))
    return type(value) is type(shape) and (isinstance(shape, list | dict) or value == shape)


def _wrong_name(value: dict[str, Any], shape: dict[str, Any]) -> str | None:
    """Return in words the first name that is missing, or else the first that is not known."""
    for name in shape:
        if not name.endswith("?") and name not in value:
            return f"none of the name {name!r}"
    known = {name.removesuffix("?") for name in shape}
    return next((f"the unknown {short(name)}" for name in value if name not in known), None)


def short(value: Any) -> str:
    """Return a value as JSON of at most 61 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _words(shape: Any) -> str:
    names = {
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        object: "anything",
    }
    if isinstance(shape, type):
        return names[shape]
    if isinstance(shape, list):
        return "a list"
    return "an object" if isinstance(shape, dict) else json.dumps(shape)
