"""
What is guessed to be in the prefix cache when a request is sent, beside what the real engine tells at its end.

The proxy stands in between, as always; the guess is made here by the same code, on the same bytes. `pytest -rP` shows
every guess.
"""

import json
import random
from itertools import count
from statistics import mean
from typing import Any

import httpx
import pytest

from proxy.accounting.cache_guess import CacheGuess
from proxy.accounting.flight import Flight
from proxy.accounting.units import Nanoseconds
from proxy.upstream.engine_metrics import read_counters
from proxy.wire.ask import read_ask
from tests.engine.real import RealEngine
from tests.live import LiveProxy
from tests.real.exchange import exchange, post

pytestmark = pytest.mark.real

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CHANCE = random.Random("prefix guess")
"""The same words in every run, for a tiny model's answers are a matter of luck; no other test sends them."""
NEAR = 0.15
"""Of the prompt; blocks of 32 tokens are 5 % of these prompts, and pieces are cut elsewhere."""


class Asking:
    """Sends requests and keeps the guesses; `told` and `guessed` are parts of the latest prompt."""

    def __init__(self, proxy: LiveProxy, engine: RealEngine) -> None:
        self.guess = CacheGuess()
        self.told = self.guessed = 0.0
        self.flight = Flight("", "", Nanoseconds(0))
        self._proxy = proxy
        self._times = count(1)
        page = read_counters(httpx.get(f"{engine.url}/metrics", timeout=10).content, Nanoseconds(0))
        assert page is not None
        assert page.cache_capacity_tokens == 67_108_864 / 256  # bytes; 2 layers of a key and a value of 32 bfloat16
        self.guess.scraped(page)

    def __call__(self, path: str, **fields: Any) -> dict[str, Any]:
        ask = post(path, {"model": "tiny", "temperature": 0, "ignore_eos": True, "max_tokens": 12, **fields})
        read = read_ask("POST", path, ask.body, salt=b"salt")
        sent = Nanoseconds(next(self._times))
        self.flight = flight = Flight(str(sent), str(sent), sent, read.sequences, read.prompts, prefix=read.prefix)
        self.guess.opened(flight)
        flight.prompt_tokens = 10**6  # to read the guess as a part
        self.guessed = flight.cached / flight.prompt
        answer: dict[str, Any] = json.loads(exchange(self._proxy.url, ask).body)
        usage = answer["usage"]
        flight.prompt_tokens, flight.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        flight.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        flight.end(Nanoseconds(next(self._times)), "ok")
        self.guess.finished(flight)
        self.told = flight.cached_tokens / flight.prompt_tokens
        print(f"{path}: guessed {self.guessed:.1%} of {flight.prompt_tokens} tokens, told {self.told:.1%}")
        return answer


@pytest.fixture
def asking(live: LiveProxy, real_engine: RealEngine) -> Asking:
    return Asking(live, real_engine)


def words(number: int = 40) -> str:
    """Text that nobody has sent before."""
    return " ".join(f"{CHANCE.getrandbits(32):08x}" for _ in range(number))


def new_ids() -> list[int]:
    """640 token ids in an order that nobody has sent before."""
    return [100 + byte * 7 for byte in CHANCE.randbytes(16) * 40]


def test_a_conversation(asking: Asking) -> None:
    """The first turn is new; of every later one all is cached but what the user has just said."""
    messages = [{"role": "system", "content": words(30)}]
    for turn in range(5):
        messages.append({"role": "user", "content": words(25)})
        answer = asking(CHAT, messages=messages)
        messages.append(answer["choices"][0]["message"])
        assert asking.guessed == 0.0 if turn == 0 else 0.3 < asking.guessed < 0.95
        assert abs(asking.guessed - asking.told) < NEAR


def test_a_long_prompt_again_and_again(asking: Asking) -> None:
    """New at first, then cached but for its end; another one that begins alike is cached up to there."""
    prompt = words(100)

    for path, fields in (
        (COMPLETIONS, {"prompt": prompt}),
        (CHAT, {"messages": [{"role": "user", "content": prompt}]}),
    ):
        asking(path, **fields)
        assert (asking.guessed, asking.told < 0.05) == (0.0, True)
        for _ in range(2):
            asking(path, **fields)
            assert asking.guessed > 0.85
            assert abs(asking.guessed - asking.told) < NEAR
    asking(COMPLETIONS, prompt=prompt[: len(prompt) // 2] + words(50))
    assert 0.4 < asking.guessed < 0.55
    assert abs(asking.guessed - asking.told) < NEAR


def test_a_long_answer_sent_back_is_learnt(asking: Asking) -> None:
    """The tiny model's tokens are not those its own text is read as: the engine finds them up to some place only.

    No two answers are alike in that, but on average the guess is right after a few.
    """
    apart = []
    for _ in range(10):
        messages = [{"role": "user", "content": words(25)}]
        answer = asking(CHAT, messages=messages, max_tokens=200)
        messages += [answer["choices"][0]["message"], {"role": "user", "content": words(10)}]
        asking(CHAT, messages=messages)
        apart.append(asking.guessed - asking.told)

    assert abs(mean(apart[-6:])) < NEAR


def test_token_ids_and_tools(asking: Asking) -> None:
    """Ids are cut as the engine cuts them; tools stand before all messages."""
    ids = new_ids()
    tools = [{"type": "function", "function": {"name": "find", "description": words(40), "parameters": {}}}]
    for fields in ({"prompt": ids}, {"prompt": ids + ids[:200]}):
        asking(COMPLETIONS, **fields)
        assert abs(asking.guessed - asking.told) < 0.07
    for _ in range(2):
        asking(CHAT, messages=[{"role": "user", "content": words(20)}], tools=tools, tool_choice="none")
        assert abs(asking.guessed - asking.told) < NEAR
    assert asking.guessed > 0.5


def test_what_stays_out_of_the_cache_is_guessed_so(asking: Asking) -> None:
    """Another salt is another cache, and log probabilities of the prompt need it computed anew."""
    prompt = words(60)
    asking(COMPLETIONS, prompt=prompt)
    for fields in ({"cache_salt": words(1)}, {"prompt_logprobs": 1}, {"echo": True, "logprobs": 1}):
        asking(COMPLETIONS, prompt=prompt, **fields)
        assert (asking.guessed, asking.told) == (0.0, 0.0)


def test_several_answers_and_prompts_compute_what_the_engine_counted(asking: Asking, real_engine: RealEngine) -> None:
    """The engine tells one sequence's hits only; what all computed is on its page."""

    def computed() -> float:
        page = read_counters(httpx.get(f"{real_engine.url}/metrics", timeout=10).content, Nanoseconds(0))
        assert page is not None
        return page.computed_prompt_tokens

    ids = [new_ids() for _ in range(2)]
    for fields in ({"prompt": ids[0], "n": 3}, {"prompt": ids[0], "n": 3}, {"prompt": ids}, {"prompt": ids, "n": 2}):
        before = computed()
        asking(COMPLETIONS, **{**fields, "temperature": 1})
        counted = computed() - before
        print(f"computed {asking.flight.computed}, counted {counted:.0f} of {asking.flight.read}")
        assert abs(asking.flight.computed - counted) < 40 * asking.flight.sequences
