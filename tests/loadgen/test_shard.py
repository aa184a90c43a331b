"""One worker's part of the load."""

import json

import pytest

from loadgen.options import Options
from loadgen.shard import Shard, Target, Ticket, make_shard

OPTIONS = Options(
    rate_per_s=10, requests=50, arrivals="poisson", burstiness=1, seed=1, workload="azure-conv-2023", model=None,
    max_model_len=None, max_in_flight=None, outcomes=None, api_key=None, progress_every_s=5,
)  # fmt: skip


def count(text: str) -> int:
    return 9 + len(text.split())


def shard_of(shard: int, shards: int, max_model_len: int | None = 4096) -> Shard:
    return make_shard(OPTIONS, Ticket("run", shard, shards), Target("m", max_model_len, count, "tokenize"))


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_the_shards_together_are_the_plan(shards: int) -> None:
    """However many workers, every request is in exactly one shard, with the same body and due time."""
    whole = {r.request_id: r for r in shard_of(0, 1).requests}
    parts = [r for k in range(shards) for r in shard_of(k, shards).requests]

    assert len(parts) == len(whole) == 50
    assert {r.request_id: r for r in parts} == whole


def test_a_body_asks_for_exactly_its_lengths() -> None:
    """The output may neither stop early nor run on, and the stream must tell its usage."""
    for request in shard_of(0, 1).requests:
        body = json.loads(request.body)
        assert count(body["messages"][0]["content"]) == request.input_tokens
        assert body["max_tokens"] == body["min_tokens"] == request.output_tokens
        assert body["ignore_eos"] is True
        assert body["stream_options"] == {"include_usage": True}


def test_requests_fit_the_context_of_the_server() -> None:
    """Scaled by one factor, and the report says so."""
    shard = shard_of(0, 1, max_model_len=1024)

    assert all(r.input_tokens + r.output_tokens <= 1024 for r in shard.requests)
    assert any("lengths scaled by 0.07" in fact and "1024 tokens" in fact for fact in shard.facts)


def test_prompts_below_the_template_are_raised_and_counted() -> None:
    """A chat template costs tokens that no prompt can go below; that is said, not hidden."""
    shard = shard_of(0, 1, max_model_len=256)

    assert min(r.input_tokens for r in shard.requests) == 10
    assert any("prompts raised to 10 tokens" in fact for fact in shard.facts)


def test_an_unknown_context_scales_nothing() -> None:
    """Servers other than vLLM do not tell it."""
    assert not any("scaled" in fact for fact in shard_of(0, 1, max_model_len=None).facts)
