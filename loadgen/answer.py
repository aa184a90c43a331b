"""What one streamed chat answer says, line by line: token times, usage, and the energy comment."""

import json
from dataclasses import dataclass, field
from typing import Any

CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls")
"""Parts of a delta that carry tokens; a chunk with only the role does not count as the first token."""


@dataclass(slots=True)
class Answer:
    """Facts of one answer, filled by `read`; what has not been heard stays None."""

    first_ns: int | None = None
    last_ns: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    energy: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    done: bool = False

    def read(self, line: bytes, at_ns: int) -> None:
        """Take in one line of the stream, which ended at `at_ns`. Other fields and comments of SSE are ignored."""
        if line.startswith(b"data:"):
            self._data(line[5:].strip(), at_ns)
        elif line.startswith(b": energy "):
            told = _object(line[9:])
            if told is not None:
                self.energy = told

    @property
    def energy_uj(self) -> int | None:
        """Whole microjoules reported; None if the server does not report energy or does not know it."""
        told = self.energy.get("energy_joules")
        return round(told * 1e6) if isinstance(told, int | float) and not isinstance(told, bool) else None

    def _data(self, data: bytes, at_ns: int) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        chunk = _object(data)
        if chunk is None:
            self.error = self.error or f"not a JSON object in the stream: {data[:80]!r}"
            return
        if chunk.get("error"):
            self.error = _error_text(chunk)
        self._choices(chunk.get("choices") or [], at_ns)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")
            # with the header `x-energy: usage` the proxy puts the object here instead of in a comment
            if isinstance(usage.get("energy"), dict):
                self.energy = usage["energy"]

    def _choices(self, choices: list[dict[str, Any]], at_ns: int) -> None:
        for choice in choices:
            delta = choice.get("delta") or {}
            if any(delta.get(key) for key in CONTENT_KEYS):
                self.first_ns = at_ns if self.first_ns is None else self.first_ns
                self.last_ns = at_ns
            elif choice.get("finish_reason") and self.first_ns is not None:
                # the last tokens may have no text of their own (half a character, an end mark)
                self.last_ns = at_ns


def error_message(body: bytes) -> str:
    """The message in the body of a refused request, of OpenAI's shape or FastAPI's; else the body's beginning."""
    refused = _object(body)
    return body[:200].decode("utf-8", "replace") if refused is None else _error_text(refused)


def _error_text(body: dict[str, Any]) -> str:
    error = body.get("error", body.get("detail", body))
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
