"""The official OpenAI client works against the proxy as against vLLM, and can read the energy."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.engine.real import RealEngine
from tests.live import LiveProxy

pytestmark = pytest.mark.real

MESSAGES: Any = [{"role": "user", "content": "bada dofu gimi"}]
FIXED: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "seed": 1, "max_tokens": 12}
EXACT = {"ignore_eos": True}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


class Verdict(BaseModel):
    """What the structured answers hold."""

    colour: Literal["red", "green"]
    certain: bool


@pytest.fixture
def client(live: LiveProxy) -> Iterator[OpenAI]:
    """The client through the proxy."""
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def straight(real_engine: RealEngine) -> Iterator[OpenAI]:
    """The client without the proxy."""
    with OpenAI(base_url=f"{real_engine.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def said(answer: Any) -> Any:
    """What an answer says, without what differs every time."""
    return [choice.model_dump() for choice in answer.choices], answer.usage.completion_tokens


def test_chat(client: OpenAI, straight: OpenAI) -> None:
    """A chat completion says the same."""
    ask = {**FIXED, "extra_body": EXACT}

    assert said(client.chat.completions.create(**ask)) == said(straight.chat.completions.create(**ask))


def test_chat_stream(client: OpenAI, straight: OpenAI) -> None:
    """The pieces of a stream add up to the same text, and the client never stumbles over the comment."""
    ask = {**FIXED, "extra_body": EXACT, "stream": True, "stream_options": {"include_usage": True}}

    texts, usages = [], []
    for one in (client, straight):
        chunks = list(one.chat.completions.create(**ask))
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
        usages.append(chunks[-1].usage)

    assert texts[0] == texts[1]
    assert usages[0].completion_tokens == usages[1].completion_tokens == 12


def test_a_stream_without_usage_shows_none(client: OpenAI) -> None:
    """What the proxy asks of vLLM for itself is invisible."""
    chunks = list(client.chat.completions.create(**FIXED, stream=True, extra_body=EXACT))

    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_completions(client: OpenAI, straight: OpenAI) -> None:
    """Completions with several prompts, echo and logprobs say the same."""
    ask: Any = {
        "model": "tiny",
        "prompt": ["bada", "dofu gimi"],
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": 2,
        "echo": True,
    }

    assert said(client.completions.create(**ask)) == said(straight.completions.create(**ask))


def test_several_choices(client: OpenAI, straight: OpenAI) -> None:
    """n=2 gives two answers, each reproducible by its seed."""
    ask = {**FIXED, "temperature": 1, "n": 2, "extra_body": EXACT}

    assert said(client.chat.completions.create(**ask)) == said(straight.chat.completions.create(**ask))
    stream = client.chat.completions.create(**ask, stream=True)
    assert {choice.index for chunk in stream for choice in chunk.choices} == {0, 1}


def test_logprobs(client: OpenAI, straight: OpenAI) -> None:
    """Logprobs arrive as they are."""
    ask = {**FIXED, "logprobs": True, "top_logprobs": 2, "extra_body": EXACT}

    found, expected = (one.chat.completions.create(**ask).choices[0].logprobs for one in (client, straight))
    assert found is not None
    assert found == expected
    assert len(found.content) == 12


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_tools(choice: Any, client: OpenAI) -> None:
    """A tool is called with arguments of its schema, in one piece and in a stream."""
    ask: Any = {**FIXED, "tools": TOOLS, "tool_choice": choice, "max_tokens": 120}

    call = client.chat.completions.create(**ask).choices[0].message.tool_calls[0].function
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0].function

    assert call.name == streamed.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert json.loads(streamed.arguments) == json.loads(call.arguments)


def test_structured_output(client: OpenAI, straight: OpenAI) -> None:
    """parse() gives an object of the asked type."""
    ask = {**FIXED, "max_tokens": 40, "response_format": Verdict}

    verdicts = [one.chat.completions.parse(**ask).choices[0].message.parsed for one in (client, straight)]
    assert isinstance(verdicts[0], Verdict)
    assert verdicts[0] == verdicts[1]


def test_responses(client: OpenAI, straight: OpenAI) -> None:
    """The responses API works, in one piece and in a stream."""
    ask: Any = {"model": "tiny", "input": "bada dofu", "temperature": 0, "max_output_tokens": 8}

    whole, expected = (one.responses.create(**ask) for one in (client, straight))
    events = list(client.responses.create(**ask, stream=True))

    assert whole.output_text == expected.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == expected.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens == 8


def test_models(client: OpenAI, straight: OpenAI) -> None:
    """The models are vLLM's."""
    found, expected = ([model.id for model in one.models.list()] for one in (client, straight))
    assert found == expected == ["tiny"]


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"model": "nobody"}, openai.NotFoundError),
        ({"temperature": -3}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "bada " * 4000}]}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "bada " * 4000}], "stream": True}, openai.BadRequestError),
    ],
)
def test_errors(broken: Any, error: type[openai.APIStatusError], client: OpenAI, straight: OpenAI) -> None:
    """Errors are of the client's own classes with vLLM's own words."""
    messages = []
    for one in (client, straight):
        with pytest.raises(error) as caught:
            one.chat.completions.create(**{**FIXED, **broken})
        messages.append((caught.value.message, caught.value.code, caught.value.param))

    assert messages[0] == messages[1]


def test_embeddings_of_a_generating_server(client: OpenAI, straight: OpenAI) -> None:
    """What vLLM does not serve is not found, here as there."""
    for one in (client, straight):
        with pytest.raises(openai.NotFoundError):
            one.embeddings.create(model="tiny", input="bada")


def test_energy_in_headers(client: OpenAI) -> None:
    """with_raw_response shows the energy and the id of the request; the parsed answer is untouched."""
    raw = client.chat.completions.with_raw_response.create(**FIXED, extra_headers={"x-request-id": "client-1"})

    assert float(raw.headers["x-energy-joules"]) > 0
    assert raw.headers["x-energy-status"] == "provisional"
    assert raw.headers["x-request-id"] == "client-1"
    answer = raw.parse()
    assert answer._request_id == "client-1"
    assert not (answer.usage.model_extra or {}).get("energy")


def test_the_settled_record_by_the_clients_own_id(client: OpenAI, live: LiveProxy) -> None:
    """The id that the client shows for an answer finds its settled energy."""
    answer = client.chat.completions.create(**FIXED)

    record = live.settled(answer._request_id or "")
    assert record["energy_joules"] > 0
    assert record["tokens"]["prompt"] == answer.usage.prompt_tokens
    assert record["tokens"]["completion"] == answer.usage.completion_tokens


def test_energy_in_usage(client: OpenAI) -> None:
    """With `x-energy: usage` the energy is an attribute of usage, in one piece and in a stream."""
    headers = {"x-energy": "usage"}
    whole = client.chat.completions.create(**FIXED, extra_headers=headers)
    *_, last = client.chat.completions.create(**FIXED, stream=True, extra_headers=headers)

    for usage in (whole.usage, last.usage):
        energy = usage.model_extra["energy"]
        assert usage.energy == energy
        assert energy["energy_joules"] > 0
        assert energy["status"] == "provisional"
        assert energy["tokens"]["completion"] == usage.completion_tokens


def test_energy_in_the_usage_of_a_response(client: OpenAI) -> None:
    """The responses API has it in its usage too."""
    ask: Any = {"model": "tiny", "input": "bada dofu", "max_output_tokens": 8}
    headers = {"x-energy": "usage"}
    whole = client.responses.create(**ask, extra_headers=headers)
    *_, last = client.responses.create(**ask, stream=True, extra_headers=headers)

    for usage in (whole.usage, last.response.usage):
        assert usage.model_extra["energy"]["energy_joules"] > 0


def test_the_stream_helper(client: OpenAI) -> None:
    """The client's own accumulation of a stream comes to the answer in one piece."""
    stopped = {**FIXED, "stop": " "}  # the helper takes no answer that was cut off
    with client.chat.completions.stream(**stopped) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    whole = client.chat.completions.create(**stopped)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].message.content
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_the_asynchronous_client(live: LiveProxy) -> None:
    """Eight requests at once, streams and whole answers mixed, give what one gives alone."""

    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:

            async def whole() -> str:
                answer = await client.chat.completions.create(**FIXED, extra_body=EXACT)
                return answer.choices[0].message.content or ""

            async def streamed() -> str:
                chunks = await client.chat.completions.create(**FIXED, stream=True, extra_body=EXACT)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return list(await asyncio.gather(*(one() for one in (whole, streamed) * 4)))

    answers = asyncio.run(ask_all())
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert answers[0]
