"""What a client asks of the simulated engine: a request body read as vLLM reads it, or refused as vLLM refuses it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.engine.language import chat_tokens, tokens

NOT_FOUND = b'{"detail":"Not Found"}'
UNAUTHORIZED = b'{"error":"Unauthorized"}'
BUSY = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Refusal(Exception):
    """The engine answers with an error status; `body` is what vLLM writes."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": kind, "param": param, "code": status}
        self.error = {"error": error}
        self.body = json.dumps(self.error, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Ask:
    """A generation request that will be answered."""

    endpoint: str
    body: Mapping[str, Any]
    model: str
    request_id: str | None
    prompts: list[tuple[int, ...]]
    choices: int
    length: int
    finish_reason: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    token_ids: bool
    salt: str


def document(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The request body as a JSON object, or the refusal of FastAPI's validation."""
    if not headers.get("content-type", "").startswith("application/json"):
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed", None)
    if not body:
        raise _invalid("{'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}", "body")
    try:
        parsed = json.loads(body)
    except json.JSONDecodeError as error:
        where = f"body.{error.pos}"
        raise _invalid(
            f"{{'type': 'json_invalid', 'loc': '{where}', 'msg': 'JSON decode error', "
            f"'input': '<dict of 0 items>', 'ctx': {{'error': '{error.msg}'}}}}",
            where,
        ) from error
    if not isinstance(parsed, dict):
        raise _invalid(
            "{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary'}", "body"
        )
    return parsed


def require(body: Mapping[str, Any], field: str, added: int = 0) -> None:
    """Refuses a body without `field`; `added` is how many fields vLLM itself has put in before it looks."""
    if field not in body:
        place = f"body.{field}"
        items = len(body) + added
        raise _invalid(
            f"{{'type': 'missing', 'loc': '{place}', 'msg': 'Field required', 'input': '<dict of {items} items>'}}",
            place,
        )


def check_model(body: Mapping[str, Any], model: str) -> None:
    """Refuses a model this engine does not serve; no model at all means the one it has."""
    if body.get("model") not in (None, model):
        message = f"The model `{body['model']}` does not exist. Valid aliases: {model}."
        raise Refusal(404, message, "NotFoundError", "model")


def read_ask(
    endpoint: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    model: str,
    max_model_len: int,
    answer_tokens: int,
    force_usage: bool,
) -> Ask:
    """Reads a body for "chat", "completions" or "responses"; raises Refusal where vLLM would."""
    _check_fields(endpoint, body)
    check_model(body, model)
    prompts = _prompts(endpoint, body)
    limit = _limit(endpoint, body, prompts, max_model_len)
    choices = _choices(body)
    length = limit if body.get("ignore_eos") else min(limit, answer_tokens)
    options = body.get("stream_options") or {}
    include = force_usage or bool(options.get("include_usage"))
    return Ask(
        endpoint=endpoint,
        body=body,
        model=model,
        request_id=_request_id(endpoint, body, headers),
        prompts=prompts,
        choices=choices,
        length=length,
        finish_reason="length" if length == limit else "stop",
        stream=bool(body.get("stream")),
        include_usage=include,
        continuous_usage=force_usage or (include and bool(options.get("continuous_usage_stats"))),
        token_ids=bool(body.get("return_token_ids")),
        salt=str(body.get("cache_salt", "")),
    )


def _invalid(message: str, param: str | None) -> Refusal:
    return Refusal(400, f"1 validation error:\n  {message}", "Bad Request", param)


def _check_fields(endpoint: str, body: Mapping[str, Any]) -> None:
    if endpoint == "chat":
        require(body, "messages")
    if endpoint == "responses":
        require(body, "input", added=1)
    if endpoint == "completions" and body.get("prompt") in (None, ""):
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise Refusal(400, message, param="prompt")
    if body.get("stream_options") and not body.get("stream"):
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise Refusal(400, message, param="stream_options")


def _prompts(endpoint: str, body: Mapping[str, Any]) -> list[tuple[int, ...]]:
    if endpoint == "chat":
        return [chat_tokens(body["messages"], body.get("tools"))]
    if endpoint == "responses":
        given = body["input"]
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return [chat_tokens(messages, body.get("tools"))]
    prompt = body["prompt"]
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    return [tokens(one) if isinstance(one, str) else tuple(one) for one in prompt]


def _limit(endpoint: str, body: Mapping[str, Any], prompts: list[tuple[int, ...]], max_model_len: int) -> int:
    """How many tokens an answer may have: what was asked, cut to the room the prompt leaves."""
    longest = max(map(len, prompts))
    if longest > max_model_len:
        raise Refusal(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {longest} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
            f"input prompt. (parameter=input_tokens, value={longest})",
            param="input_tokens",
        )
    names = {"responses": ("max_output_tokens",), "chat": ("max_completion_tokens", "max_tokens")}
    asked = [body[name] for name in names.get(endpoint, ("max_tokens",)) if body.get(name) is not None]
    if not asked:
        return 16 if endpoint == "completions" else max_model_len - longest
    limit = int(asked[0])
    if limit < 1:
        message = f"max_tokens must be at least 1, got {limit}. (parameter=max_tokens, value={limit})"
        raise Refusal(400, message, param="max_tokens")
    if limit > max_model_len:
        message = (
            f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}. "
            f"Please request fewer output tokens. (parameter=max_tokens, value={limit})"
        )
        raise Refusal(400, message, param="max_tokens")
    return min(limit, max_model_len - longest)


def _choices(body: Mapping[str, Any]) -> int:
    choices = body.get("n")
    if choices is None:
        return 1
    if choices < 1:
        raise Refusal(400, f"n must be at least 1, got {choices}.")
    if choices > 1 and body.get("temperature") == 0:
        raise Refusal(400, f"n must be 1 when using greedy sampling, got {choices}.")
    return int(choices)


def _request_id(endpoint: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """The id the client gave; /v1/responses looks at the body only."""
    header = None if endpoint == "responses" else headers.get("x-request-id")
    return header or body.get("request_id")
