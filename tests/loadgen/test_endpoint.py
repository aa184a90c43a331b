"""Questions to the server before the load, over real HTTP."""

import socket

import pytest

from loadgen.endpoint import Endpoint
from loadgen.errors import EndpointError
from tests.loadgen.mock_vllm import MODEL, MockVllm, serving, tokens_of


def test_model_and_context_are_asked() -> None:
    """As vLLM lists them."""
    with serving(MockVllm(max_model_len=777)) as url:
        model = Endpoint(url + "/", api_key="k").models()[0]

    assert (model["id"], model["max_model_len"]) == (MODEL, 777)


@pytest.mark.parametrize(("tokenize", "counted_by"), [(True, "tokenize"), (False, "usage")])
def test_tokens_are_counted_with_or_without_a_tokenizer_route(tokenize: bool, counted_by: str) -> None:
    """Where /tokenize is missing, requests for one token tell the same numbers."""
    with serving(MockVllm(tokenize=tokenize)) as url:
        count, how = Endpoint(url, api_key=None).token_counter(MODEL)

        assert how == counted_by
        assert [count(text) for text in ("So", "So time government")] == [tokens_of("So"), 9]


def test_a_server_that_is_not_there_is_said_with_its_address() -> None:
    """The cause is in the message."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

    with pytest.raises(EndpointError, match=f"{url}/v1/models: .*refused"):
        Endpoint(url, api_key=None).models()


def test_an_answer_that_is_not_models_is_said() -> None:
    """A wrong base URL is the usual cause."""
    with serving(MockVllm()) as url, pytest.raises(EndpointError, match="HTTP 404: Not Found") as caught:
        Endpoint(url + "/v1", api_key=None).models()

    assert caught.value.status == 404
