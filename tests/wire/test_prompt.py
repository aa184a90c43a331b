"""
A request's prompts become chains of names: equal as far as the prompts are equal, and saying nothing of them.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.prefix_cache import PrefixCache
from proxy.accounting.prefix_chain import Chain, reach
from proxy.wire.ask import read_ask
from proxy.wire.prompt import UNIT_BYTES, prefix_chains

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SALT = b"0123456789abcdef"
SYSTEM = {"role": "system", "content": "You are of some help, whatever is asked. " * 12}
HELLO = {"role": "user", "content": "Which of the three is the oldest, and by how much? " * 5}
REPLY = {"role": "assistant", "content": "The second one, by forty years. " * 9}
NEXT = {"role": "user", "content": "And the youngest? " * 8}


def one(path: str, salt: bytes = SALT, **fields: Any) -> Chain:
    (chain,) = prefix_chains(path, fields, salt)
    return chain


def common(first: Chain, second: Chain) -> int:
    pairs = list(zip(first.pieces, second.pieces, strict=False))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))


@given(st.text(max_size=2000), st.text(max_size=700), st.text(max_size=700))
def test_what_texts_share_their_chains_share(shared: str, left: str, right: str) -> None:
    """
    To within one piece: equal beginnings give equal names, and names part where the texts do.
    """
    first, second = one(COMPLETIONS, prompt=shared + left), one(COMPLETIONS, prompt=shared + right)
    texts = [(shared + text).encode("utf-8", "surrogatepass") for text in (left, right)]
    same = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))

    whole = common(first, second)
    assert reach(whole) * UNIT_BYTES <= same < reach(whole + 1) * UNIT_BYTES or whole == len(first.pieces) == len(
        second.pieces
    )
    assert first.length == len(texts[0]) / UNIT_BYTES
    assert (first.end == second.end) is (texts[0] == texts[1])


@given(st.lists(st.integers(0, 200_000), max_size=300), st.integers(0, 300))
def test_token_ids_are_cut_by_sixteen(ids: list[int], kept: int) -> None:
    """
    As exact as the engine's own blocks.
    """
    chain = one(COMPLETIONS, prompt=[*ids, 1])
    assert (len(chain.pieces), chain.length) == ((len(ids) + 1) // 16, (len(ids) + 1) / 16)

    other = one(COMPLETIONS, prompt=[*ids[:kept], -1])
    assert common(chain, other) == min(kept, len(ids)) // 16


def test_nothing_can_be_read_off_without_the_salt() -> None:
    """
    Another salt makes every name another; the text is in none of them.
    """
    first = one(CHAT, messages=[SYSTEM, HELLO, REPLY, NEXT])
    second = one(CHAT, b"another salt", messages=[SYSTEM, HELLO, REPLY, NEXT])
    names = [[*chain.pieces, chain.end, *(quote.name for quote in chain.quotes)] for chain in (first, second)]

    assert not set(names[0]) & set(names[1])
    assert {len(name) for name in names[0]} == {8}
    assert b"oldest" not in repr(first).encode()


def test_a_conversation_that_goes_on_begins_as_it_did() -> None:
    """
    The second turn shares the first one's pieces, and its reply is known as the answer to exactly that.
    """
    first, second = one(CHAT, messages=[SYSTEM, HELLO]), one(CHAT, messages=[SYSTEM, HELLO, REPLY, NEXT])
    (quote,) = second.quotes

    assert common(first, second) >= len(first.pieces) - 1
    assert quote.name == first.end
    assert quote.end - quote.start == len(REPLY["content"]) / UNIT_BYTES
    cache = PrefixCache(1000)
    cache.hold(first)
    assert cache.found(second).prompt + cache.found(second).answer == quote.end


def test_a_reply_to_something_else_is_not_the_same() -> None:
    """
    One letter before it makes it another.
    """
    asked = {**HELLO, "content": HELLO["content"] + "?"}

    assert one(CHAT, messages=[SYSTEM, asked, REPLY]).quotes[0].name != one(CHAT, messages=[SYSTEM, HELLO]).end


def test_parts_are_the_text_they_hold() -> None:
    """
    A content may come as a text or as a list of parts.
    """
    parts = {"role": "user", "content": [{"type": "text", "text": HELLO["content"]}]}

    assert one(CHAT, messages=[SYSTEM, parts]) == one(CHAT, messages=[SYSTEM, HELLO])


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"cache_salt": "mine"},
        {"tools": [{"type": "function", "function": {"name": "look_up"}}]},
        {"documents": [{"title": "a", "text": "b"}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template": "{{ messages }}"},
        {"reasoning_effort": "low"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_changes_the_start_changes_all(fields: dict[str, Any]) -> None:
    """
    Another model or adapter has other blocks; tools stand before everything.
    """
    plain = one(CHAT, messages=[SYSTEM, HELLO])

    assert common(plain, one(CHAT, messages=[SYSTEM, HELLO], **fields)) == 0


def test_what_changes_the_answer_only_changes_nothing() -> None:
    """
    Sampling, streaming and names for the log are no part of the prompt.
    """
    plain = one(CHAT, messages=[SYSTEM, HELLO])

    assert plain == one(CHAT, messages=[SYSTEM, HELLO], temperature=0.5, stream=True, user="me", max_tokens=5)


def picture(data: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}, HELLO["content"]],
    }


def test_a_picture_is_opaque_and_counts_as_a_thousand_tokens() -> None:
    """
    The same picture is the same; another of the same size is not; its megabytes of base64 are no text.
    """
    data = "A" * 2_000_000
    first, same = one(CHAT, messages=[picture(data)]), one(CHAT, messages=[picture(data)])
    other = one(CHAT, messages=[picture("B" + data[1:].replace("A", "B"))])

    assert first == same
    assert common(first, other) == 0
    assert 64 < first.length < 72
    assert one(CHAT, messages=[picture("A" * 100)]).length == first.length


CALL = {"type": "function", "id": "1", "function": {"name": "look_up", "arguments": '{"x": 1}'}}


def test_calls_and_their_results_are_part_of_the_prompt() -> None:
    """
    An agent's turn: the call is the engine's answer, the result is new.
    """
    asked = [SYSTEM, HELLO]
    called = [*asked, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    first = one(CHAT, messages=asked)
    second = one(CHAT, messages=[*called, {"role": "tool", "tool_call_id": "1", "content": "x is 1"}])
    other = one(CHAT, messages=[*called, {"role": "tool", "tool_call_id": "1", "content": "x is 2"}])

    assert second.quotes[0].name == first.end
    assert second.quotes[0].end > second.quotes[0].start
    assert second.end != other.end


def test_responses_and_messages_are_conversations_too() -> None:
    """
    Another form of the same words is the same prompt, for all go through the model's template.
    """
    chat = one(CHAT, messages=[SYSTEM, HELLO, REPLY, NEXT])
    reply = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": REPLY["content"]}]}
    header = {"type": "text", "text": "x-anthropic-billing-header: new each time"}
    system = [header, {"type": "text", "text": SYSTEM["content"]}]

    assert chat == one(RESPONSES, instructions=SYSTEM["content"], input=[HELLO, reply, NEXT])
    assert chat == one(MESSAGES, system=SYSTEM["content"], messages=[HELLO, REPLY, NEXT])
    assert chat == one(MESSAGES, system=system, messages=[HELLO, REPLY, NEXT])
    assert one(RESPONSES, input="hello") == one(CHAT, messages=[{"role": "user", "content": "hello"}])


def test_items_that_the_engine_made_are_one_answer() -> None:
    """
    Reasoning, a call and a text of /v1/responses come from one run; the call's result is the next one's news.
    """
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm " * 50}]}
    call = {"type": "function_call", "call_id": "1", "name": "look_up", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "nothing"}
    first = one(RESPONSES, input=[HELLO])
    (quote,) = one(RESPONSES, input=[HELLO, reasoning, call, result]).quotes

    assert quote.name == first.end
    assert quote.end - quote.start == len("hm " * 50 + "look_up" + "{}") / UNIT_BYTES


def test_several_prompts_are_several_chains() -> None:
    """
    Each is looked up by itself.
    """
    texts = prefix_chains(COMPLETIONS, {"prompt": ["a" * 200, "b" * 300]}, SALT)
    ids = prefix_chains("/v1/embeddings", {"input": [[1] * 32, [2] * 16]}, SALT)

    assert [len(chain.pieces) for chain in (*texts, *ids)] == [3, 4, 2, 1]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"messages": 7}),
        (CHAT, {"messages": None}),
        (COMPLETIONS, {}),
        (COMPLETIONS, {"prompt": []}),
        (COMPLETIONS, {"prompt": [1, "a"]}),
        (COMPLETIONS, {"prompt": [1, 2**70]}),
        (COMPLETIONS, {"prompt": [None]}),
        (COMPLETIONS, {"prompt": "a" * 200, "prompt_logprobs": 0}),
        (COMPLETIONS, {"prompt": "a" * 200, "echo": True, "logprobs": 1}),
        (RESPONSES, {"input": "a" * 200, "previous_response_id": "resp_1"}),
        (RESPONSES, {}),
        ("/v1/embeddings", {"input": {"a": 1}}),
        ("/v1/anything", {"messages": [HELLO]}),
        ("/tokenize", {"messages": [HELLO]}),
    ],
)
def test_what_cannot_be_known_has_no_chain(path: str, fields: dict[str, Any]) -> None:
    """
    No prompt, part of it elsewhere, or one that the engine reads without a look into its cache.
    """
    assert prefix_chains(path, fields, SALT) == ()


@pytest.mark.parametrize("depth", [400, 900, 100_000])
def test_nesting_breaks_nothing(depth: int) -> None:
    """
    What the parser can read is named or left, never a crash.
    """
    content: list[Any] = ["four"]
    for _ in range(depth):
        content = [content]

    assert len(prefix_chains(CHAT, {"messages": content}, SALT)) <= 1
    assert len(prefix_chains(CHAT, {"messages": [HELLO], "tools": content}, SALT)) <= 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.sampled_from(["role", "content", "type", "text", "tool_calls", "image_url", "output", "arguments"])


@given(
    st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/v1/embeddings", "/pooling"]),
    st.dictionaries(
        st.sampled_from(["messages", "prompt", "input", "system", "instructions", "tools", "model", "cache_salt"]),
        JSON | st.lists(st.dictionaries(MEMBERS, JSON, max_size=4), max_size=4),
    ),
)
def test_whatever_is_sent_is_read(path: str, fields: dict[str, Any]) -> None:
    """
    The client may send any JSON; the same JSON gives the same chains.
    """
    assert prefix_chains(path, fields, SALT) == prefix_chains(path, json.loads(json.dumps(fields)), SALT)


def test_a_long_prompt_has_few_pieces() -> None:
    """
    128,000 tokens are 1,300 names, and a megabyte's are not many more: time and memory are bounded.
    """
    assert len(one(COMPLETIONS, prompt="x" * 512_000).pieces) < 1_300
    assert len(one(COMPLETIONS, prompt="x" * 16_000_000).pieces) < 2_700


def test_a_request_is_named_only_with_a_salt() -> None:
    """
    Who reads requests for another reason pays nothing for it.
    """
    body = json.dumps({"messages": [SYSTEM, HELLO]}).encode()

    assert read_ask("POST", CHAT, body).prefix == ()
    assert read_ask("POST", CHAT, body, salt=SALT).prefix == (one(CHAT, messages=[SYSTEM, HELLO]),)
    assert read_ask("POST", CHAT, b"no json", salt=SALT).prefix == ()
