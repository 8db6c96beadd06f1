"""The script in unusual places: a stream with another encoding, a thread."""

import io
import signal
import sys
import threading

import pytest

import reproduce
from analysis.ending import guarded


@pytest.mark.parametrize(
    ("encoding", "errors"),
    [
        ("ascii", "strict"),
        ("ascii", "surrogateescape"),
        ("cp1252", "strict"),
        ("latin-1", "strict"),
    ],
)
def test_characters_that_a_stream_cannot_encode_end_no_run(monkeypatch, encoding, errors):
    """A character that a stream cannot encode is replaced and ends no run.

    With "surrogateescape" Python opens stdout in the C locale.
    """
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    assert guarded(lambda _: print("1 → 2 … ≤ 3") or 0, []) == 0
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding).startswith("1 ? 2") and stream.errors == errors


def test_main_runs_in_a_thread(capsys):
    found = []
    thread = threading.Thread(target=lambda: found.append(reproduce.main(["--list"])))
    thread.start()
    thread.join()
    assert found == [0] and "ablation" in capsys.readouterr().out


def test_a_handler_that_is_not_pythons_is_left(monkeypatch):
    taken = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *handler: taken.append(handler))
    assert guarded(lambda _: 0, []) == 0 and taken == []
