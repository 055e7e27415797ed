"""What goes over the pipes between a reward worker and its process.

To the process: pickles, of things that come from the run itself. From it: JSON, because what a
plug-in's process says is data and must not be able to become code. Each frame is a length of four
bytes, then that many.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from rlft.types import Outcome

_LENGTH = struct.Struct(">I")
_INDEX = struct.Struct(">I")
LONGEST_ANSWER = 16 * 2**20
"""Bytes of an answer; the lengths above are not believed."""


class BrokenStream(ValueError):
    """The bytes that came are no frames."""


def frame(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def call(index: int, item: bytes) -> bytes:
    """The frame that asks for the outcome of a pickled `(Attempt, Task)`."""
    return frame(_INDEX.pack(index) + item)


def called(payload: bytes) -> tuple[int, bytes]:
    """(index, item) of what `call` framed."""
    return _INDEX.unpack_from(payload)[0], payload[_INDEX.size :]


def read(fd: int) -> bytes | None:
    """The next frame's payload, waiting for it; None when the other side is gone."""
    head = _exactly(fd, _LENGTH.size)
    return None if head is None else _exactly(fd, _LENGTH.unpack(head)[0])


def write(fd: int, message: Mapping[str, Any]) -> None:
    """Sends a message as JSON, whole."""
    left = memoryview(frame(json.dumps(message).encode()))
    while left:
        left = left[os.write(fd, left) :]


def length(head: bytes) -> int:
    """How many bytes follow a head of four."""
    return _LENGTH.unpack(head)[0]


class Splitter:
    """Cuts a stream of bytes into the JSON messages that `write` sent."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole now. Raises BrokenStream."""
        self._held += data
        found = []
        while len(self._held) >= _LENGTH.size:
            size = length(bytes(self._held[: _LENGTH.size]))
            if size > LONGEST_ANSWER:
                raise BrokenStream(f"an answer of {size} bytes; at most {LONGEST_ANSWER} may be")
            end = _LENGTH.size + size
            if len(self._held) < end:
                break
            try:
                found.append(dict(json.loads(self._held[_LENGTH.size : end])))
            except (ValueError, TypeError) as error:
                raise BrokenStream(f"an answer that is no message: {error}") from None
            del self._held[:end]
        return found


def told(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values; JSON gives every float back as it was."""
    return {**dataclasses.asdict(outcome), "parts": dict(outcome.parts)}


def understood(plain: Any) -> Outcome:
    """The outcome that `told` wrote. Raises BrokenStream for anything else."""
    try:
        outcome = Outcome(**plain)
        steps = tuple((int(end), float(value)) for end, value in outcome.steps)
        return dataclasses.replace(outcome, steps=steps)
    except (TypeError, ValueError) as error:
        raise BrokenStream(f"an answer that is no outcome: {error}") from None


def _exactly(fd: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(fd, min(count, 2**20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
