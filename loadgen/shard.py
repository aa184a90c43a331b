"""One worker's part of the load, made ready before the start: which requests, when, and their bodies as bytes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.arrivals import due_times
from loadgen.bins import Planned, Workload, load_workload
from loadgen.endpoint import Endpoint
from loadgen.errors import OptionError
from loadgen.options import Options
from loadgen.prompts import CountTokens, Vocabulary, calibrate, error_of_long_prompt, prompt


@dataclass(frozen=True, slots=True)
class Request:
    """One request to send. `due_ns` counts from the start of the run."""

    request_id: str
    bin: str
    input_tokens: int
    output_tokens: int
    due_ns: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Shard:
    """A worker's requests in order of their due times, and what a reader of the report must know about the plan."""

    requests: tuple[Request, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which part of the run a worker plays: the requests k with k % shards == shard."""

    run_id: str
    shard: int
    shards: int


@dataclass(frozen=True, slots=True)
class Target:
    """What the server is: the model asked for, its context window if known, and how it counts tokens."""

    model: str
    max_model_len: int | None
    count_tokens: CountTokens
    counted_by: str


def find_target(endpoint: Endpoint, options: Options) -> Target:
    """Ask the server for what the options leave open. Raises EndpointError, OptionError."""
    models = endpoint.models()
    named = [m for m in models if options.model in (None, m.get("id"))]
    if not named:
        served = ", ".join(str(m.get("id")) for m in models)
        raise OptionError(f"--model {options.model} is not served by {endpoint.base_url}, which has: {served}")
    model = str(named[0]["id"])
    count_tokens, counted_by = endpoint.token_counter(model)
    return Target(model, options.max_model_len or named[0].get("max_model_len"), count_tokens, counted_by)


def make_shard(options: Options, ticket: Ticket, target: Target) -> Shard:
    """Plan the whole run, which is the same in every worker, and build the bodies of this worker's part.

    Raises WorkloadError, PromptError, EndpointError.
    """
    workload = load_workload(options.workload)
    if target.max_model_len is not None:
        workload = workload.fit(target.max_model_len)
    plan = workload.plan(options.requests, options.seed)
    due = due_times(options.arrivals, options.rate_per_s, len(plan), options.seed, options.burstiness)
    vocabulary = calibrate(target.count_tokens)
    longest = max(planned.input_tokens for planned in plan)
    drift = error_of_long_prompt(vocabulary, target.count_tokens, max(longest, vocabulary.overhead))
    build = _builder(ticket, target.model, vocabulary)
    requests = tuple(build(k, plan[k], due[k]) for k in range(ticket.shard, len(plan), ticket.shards))
    return Shard(requests, tuple(_facts(options, target, workload, plan, vocabulary, drift)))


def _builder(ticket: Ticket, model: str, vocabulary: Vocabulary) -> Callable[[int, Planned, int], Request]:
    def build(index: int, planned: Planned, due_ns: int) -> Request:
        tokens = max(planned.input_tokens, vocabulary.overhead)
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt(vocabulary, tokens, index, ticket.run_id)}],
            "max_tokens": planned.output_tokens,
            "min_tokens": planned.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        request_id = f"{ticket.run_id}-{index}"
        return Request(request_id, planned.bin.label, tokens, planned.output_tokens, due_ns, json.dumps(body).encode())

    return build


def _facts(
    options: Options, target: Target, workload: Workload, plan: Sequence[Planned], vocabulary: Vocabulary, drift: int
) -> list[str]:
    """Sentences for the report, the same in every worker."""
    mean_in = sum(p.input_tokens for p in plan) / len(plan)
    mean_out = sum(p.output_tokens for p in plan) / len(plan)
    shape = f", burstiness {options.burstiness:g}" if options.arrivals == "gamma" else ""
    facts = [
        f"model {target.model}, workload {workload.name}, {len(plan)} requests, {options.arrivals} arrivals at "
        f"{options.rate_per_s:g}/s{shape}, seed {options.seed}",
        f"mean lengths planned: {mean_in:.1f} in, {mean_out:.1f} out"
        f" (workload: {workload.mean_input:.1f} in, {workload.mean_output:.1f} out)",
    ]
    if workload.scale < 1:
        facts.append(
            f"lengths scaled by {float(workload.scale):.3g} to fit {target.max_model_len} tokens of context;"
            " bins keep the names of the unscaled workload"
        )
    raised = sum(p.input_tokens < vocabulary.overhead for p in plan)
    if raised:
        facts.append(f"{raised} prompts raised to {vocabulary.overhead} tokens, the shortest the chat template allows")
    if drift:
        facts.append(f"warning: the longest prompt counts {drift:+d} tokens against what was asked")
    if target.counted_by == "usage":
        facts.append("prompt tokens counted by requests for one token: the server has no /tokenize")
    return facts
