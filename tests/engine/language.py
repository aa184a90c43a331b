"""The simulated engine's language: text to token ids, and for the same question always the same meaningless answer."""

import json
import random
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

BEGIN, END, SILENT = 1, 2, 7
ROLE_IDS = {"system": 3, "user": 4, "assistant": 5, "tool": 6}
FIRST_WORD_ID = 300

WORDS = [f" {a}{b}{c}{d}" for a in "bdfgklmz" for b in "aeiou" for c in "nprt" for d in "aio"]
"""What the engine can say; word i is token FIRST_WORD_ID + i."""

_PIECE = re.compile(r" ?\w{1,6}|\s|[^\w\s]")


def tokens(text: str) -> tuple[int, ...]:
    """Token ids of a prompt: about one per short word or punctuation mark, stable across runs."""
    return tuple(FIRST_WORD_ID + zlib.crc32(piece.encode()) % len(WORDS) for piece in _PIECE.findall(text))


def text_of(ids: Iterable[int]) -> str:
    """The words of token ids; ids that are no words are silent, as special tokens are in vLLM's answers."""
    return "".join(WORDS[i - FIRST_WORD_ID] for i in ids if FIRST_WORD_ID <= i < FIRST_WORD_ID + len(WORDS))


def chat_tokens(messages: Iterable[Mapping[str, Any]], tools: object = None) -> tuple[int, ...]:
    """Token ids of a conversation under a chat template that ends with the assistant's turn."""
    ids = [BEGIN]
    if tools:
        ids += [ROLE_IDS["system"], *tokens(json.dumps(tools)), END]
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        ids += [ROLE_IDS.get(message.get("role", "user"), ROLE_IDS["user"]), *tokens(content), END]
    return (*ids, ROLE_IDS["assistant"])


def answer(
    model: str, prompt: tuple[int, ...], index: int, length: int, silent_every: int | None = None
) -> tuple[int, ...]:
    """The token ids the engine says: they depend on nothing but the model, the prompt and the choice's index.

    Every `silent_every`-th token has no text of its own, like one that ends inside a UTF-8 sequence.
    """
    source = random.Random(f"{model} {index} {prompt}")
    ids = [FIRST_WORD_ID + source.randrange(len(WORDS)) for _ in range(length)]
    if silent_every:
        ids[silent_every - 1 :: silent_every] = [SILENT] * (length // silent_every)
    return tuple(ids)
