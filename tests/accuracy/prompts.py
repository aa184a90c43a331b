"""What prompts say: made-up texts, the blocks that the engine's cache knows them by, and the bodies that carry them.

A text has a number; its tokens follow from it and their place. So what two prompts have in common is known exactly,
and the relay reads the same off their bodies by its own means: bytes for the tokens, about four to each, not the
same for every text.
"""

import json
from typing import NamedTuple

from proxy.wire.ask import Ask, read_ask
from tests.accuracy.kv import BLOCK

SALT = b"bench"


class Part(NamedTuple):
    """The first `tokens` tokens of a text."""

    text: int
    tokens: int


class Message(NamedTuple):
    """A message of a conversation. The role `answer` is the engine's own, not yet made when the prompt is sent."""

    role: str
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        """Its length."""
        return sum(part.tokens for part in self.parts)


Prompt = tuple[Message, ...]


def chain(prompt: Prompt) -> tuple[int, ...]:
    """A number for each full block of 16 tokens, answer and all; it stands for everything up to the block's end."""
    found: list[int] = []
    name, room = 0, BLOCK
    held: list[tuple[int, int]] = []
    for text, tokens in (part for message in prompt for part in message.parts):
        at = 0
        while at < tokens:
            held.append((text, at))
            taken = min(room, tokens - at)
            at, room = at + taken, room - taken
            if not room:
                name = hash((name, *held))
                found.append(name)
                held, room = [], BLOCK
    return tuple(found)


def bytes_per_token(text: int) -> float:
    """Between 3.4 and 4.8, fixed for each text: what a tokeniser makes of prose and code, roughly."""
    return 3.4 + 1.4 * (text * 2_654_435_761 % 2**32) / 2**32


def _letters(part: Part) -> str:
    length = round(part.tokens * bytes_per_token(part.text))
    return (f"{part.text:08x}" * (1 + length // 8))[:length]


def asked(prompt: Prompt, *, stream: bool, answers: int, embedding: bool) -> Ask:
    """The request as the relay reads it."""
    messages = [
        {"role": message.role, "content": "".join(map(_letters, message.parts))}
        for message in prompt
        if message.role != "answer"
    ]
    if embedding:
        body = {"model": "m", "input": messages[0]["content"]}
        return read_ask("POST", "/v1/embeddings", json.dumps(body).encode(), salt=SALT)
    chat = {"model": "m", "messages": messages, "stream": stream, "n": answers}
    return read_ask("POST", "/v1/chat/completions", json.dumps(chat).encode(), salt=SALT)
