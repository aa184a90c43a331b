"""
A sequence's name inside vLLM leads back to the request it belongs to.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.engine_names import request_ids

R = "3f0c9f0e-5d0a-4d2b-8f3e-0123456789ab"


@pytest.mark.parametrize(
    "name",
    [
        f"chatcmpl-{R}-a0841bff",
        f"0_chatcmpl-{R}-b496d64f",
        f"17_chatcmpl-{R}-b496d64f",
        f"cmpl-{R}-0-b7b923b8",
        f"cmpl-{R}-31-b7b923b8",
        f"1_cmpl-{R}-0-b7b923b8",
        f"cmpl-{R}-85735bc44f2040df-beam-0-9a25e54b",
        f"chatcmpl-{R}-85735bc44f2040df85735bc44f2040df-beam-3-9a25e54b",
        f"embd-{R}-0-9a25e54b",
        f"embd-{R}-prompt-2-chunk-11-9a25e54b",
        f"pooling-{R}-1-9a25e54b",
        f"classify-{R}-0-9a25e54b",
        f"score-{R}-4-9a25e54b",
        f"transcribe-{R}-9a25e54b",
        f"generate-tokens-{R}-9a25e54b",
        f"generative-scoring-{R}-0-9a25e54b",
        f"decision-{R}-9a25e54b",
    ],
)
def test_the_likeliest_reading_is_the_request_id(name: str) -> None:
    assert request_ids(name)[0] == R


@pytest.mark.parametrize(
    ("name", "request_id"),
    [
        (f"chatcmpl-{R}_1-a0841bff", R),
        (f"translate-{R}-2-9a25e54b", R),
        (f"transcribe-{R}-lang_detect-9a25e54b", R),
        ("chatcmpl-mine-deadbeef", "mine-deadbeef"),
        ("cmpl-mine-0", "mine"),
        ("chatcmpl-0_chatcmpl-x-00000000-11111111", "0_chatcmpl-x-00000000"),
        ("cmpl-b-1-85735bc44f2040df-beam-0-9a25e54b", "b-1"),
    ],
    ids=[
        "one of several chats",
        "a piece of speech",
        "detection of the language",
        "no random digits, and an id that ends like them",
        "no random digits, but a prompt's index",
        "an id that is a name itself",
        "a beam of an id that ends like an index",
    ],
)
def test_rarer_readings_come_later(name: str, request_id: str) -> None:
    assert request_id in request_ids(name)


def test_a_response_is_known_by_its_own_id() -> None:
    """/v1/responses does not look at X-Request-Id."""
    assert request_ids("resp_a3e204d2dc983027_0-886d12d1")[0] == "resp_a3e204d2dc983027"
    assert request_ids("mine_0-886d12d1")[0] == "mine"


@pytest.mark.parametrize("name", ["", "x", "late-interaction-85735bc4-query-0-9a25e54b", "chatcmpl-", "-00000000"])
def test_a_strange_name_has_a_reading_all_the_same(name: str) -> None:
    assert request_ids(name)


@given(st.from_regex(r"\A[!-~]{1,40}\Z"), st.integers(0, 9), st.from_regex(r"\A[0-9a-f]{8}\Z"))
def test_whatever_a_client_calls_its_request_it_is_found(request_id: str, index: int, digits: str) -> None:
    """Also with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION, and with n > 1."""
    for name in (f"chatcmpl-{request_id}", f"cmpl-{request_id}-{index}", f"embd-{request_id}-{index}"):
        for engine_name in (name, f"{name}-{digits}", f"{index}_{name}-{digits}"):
            readings = request_ids(engine_name)
            assert request_id in readings
            assert len(readings) <= 4
