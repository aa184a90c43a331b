"""The JSON bodies of vLLM 0.32: every field in its order, null where vLLM writes null.

Written after the answers of a real server; test_real.py compares the two again on every run.
"""

import json
from collections.abc import Mapping
from typing import Any

from tests.engine.batch import Sequence
from tests.engine.language import text_of

FINGERPRINT = "vllm-0.32.0-5ca1ab1e"
Shape = dict[str, Any]


def dumps(value: object) -> bytes:
    """Compact JSON, letters beyond ASCII as themselves: how pydantic writes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event; only /v1/responses names its events."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + dumps(value) + b"\n\n"


def usage(prompt: int, completion: int) -> Shape:
    """The three counts in vLLM's order."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def models(model: str, created: int, max_model_len: int) -> Shape:
    """GET /v1/models."""
    permission = {
        "id": "modelperm-0123456789abcdef",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": model,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
    return {"object": "list", "data": [card]}


def chat_role(head: Shape, index: int, *, prompt_ids: tuple[int, ...] | None, counts: Shape | None) -> Shape:
    """The first chunk of each choice: a role and no text."""
    choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    counted = {} if counts is None else {"usage": {**counts, "completion_tokens_details": None}}
    ids = None if prompt_ids is None else list(prompt_ids)
    return {**head, "choices": [choice], **counted, "prompt_token_ids": ids, "prompt_text": None}


def chat_delta(
    head: Shape, index: int, text: str, *, finish: str | None, ids: tuple[int, ...] | None, counts: Shape | None
) -> Shape:
    """A chunk of text; the last one has the reason why the text ends."""
    choice: Shape = {
        "index": index,
        "delta": {"content": text} if text else {},
        "logprobs": None,
        "finish_reason": finish,
    }
    if finish is not None:
        choice["stop_reason"] = None
    choice["token_ids"] = None if ids is None else list(ids)
    counted = {} if counts is None else {"usage": {**counts, "completion_tokens_details": None}}
    return {**head, "choices": [choice], **counted}


def completion_delta(
    head: Shape,
    index: int,
    text: str,
    *,
    finish: str | None,
    ids: tuple[int, ...] | None,
    prompt_ids: tuple[int, ...] | None,
    counts: Shape | None,
) -> Shape:
    """A chunk of /v1/completions."""
    choice = {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": finish,
        "stop_reason": None,
        "prompt_token_ids": None if prompt_ids is None else list(prompt_ids),
        "token_ids": None if ids is None else list(ids),
    }
    return {**head, "choices": [choice], **({} if counts is None else {"usage": counts})}


def last_usage(head: Shape, counts: Shape, details: Shape | None, metrics: Shape | None) -> Shape:
    """The chunk after the last choice, with no choices and the usage of them all; null fields are left out."""
    counted = counts if details is None else {**counts, "prompt_tokens_details": details}
    chunk = {**head, "choices": [], "usage": counted, "system_fingerprint": FINGERPRINT}
    return chunk if metrics is None else {**chunk, "metrics": metrics}


def chat_answer(
    head: Shape, sequences: list[Sequence], *, counts: Shape, token_ids: bool, metrics: Shape | None
) -> Shape:
    """A whole answer of /v1/chat/completions."""
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": text_of(sequence.answer),
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            },
            "logprobs": None,
            "finish_reason": sequence.finish_reason,
            "stop_reason": None,
            "token_ids": list(sequence.answer) if token_ids else None,
            "routed_experts": None,
        }
        for index, sequence in enumerate(sequences)
    ]
    return {
        **head,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": counts,
        "prompt_logprobs": None,
        "prompt_token_ids": list(sequences[0].prompt) if token_ids else None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": metrics,
    }


def completion_answer(
    head: Shape, sequences: list[Sequence], *, counts: Shape, token_ids: bool, metrics: Shape | None
) -> Shape:
    """A whole answer of /v1/completions."""
    choices = [
        {
            "index": index,
            "text": text_of(sequence.answer),
            "logprobs": None,
            "finish_reason": sequence.finish_reason,
            "stop_reason": None,
            "token_ids": list(sequence.answer) if token_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": list(sequence.prompt) if token_ids else None,
            "routed_experts": None,
        }
        for index, sequence in enumerate(sequences)
    ]
    return {
        **head,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": counts,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": metrics,
    }


def output_item(item_id: str, text: str | None) -> Shape:
    """The message of /v1/responses; in progress while its text is None."""
    return {
        "id": item_id,
        "content": [] if text is None else [output_text(text, None)],
        "role": "assistant",
        "status": "in_progress" if text is None else "completed",
        "type": "message",
        "phase": None,
    }


def output_text(text: str, logprobs: list[object] | None) -> Shape:
    """The text part of a message of /v1/responses."""
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def response(
    request_id: str, created: int, model: str, body: Mapping[str, Any], *, item: Shape | None, sequence: Sequence | None
) -> Shape:
    """The response object of /v1/responses; without a sequence, the one that is just beginning."""
    cut = sequence is not None and sequence.finish_reason == "length"
    done = "incomplete" if cut else "completed"
    return {
        "id": request_id,
        "created_at": created,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "model": model,
        "object": "response",
        "output": [] if item is None else [item],
        "parallel_tool_calls": True,
        "temperature": float(body.get("temperature", 1.0)),
        "tool_choice": "none",
        "tools": body.get("tools") or [],
        "top_p": float(body.get("top_p", 1.0)),
        "background": False,
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": "in_progress" if sequence is None else done,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": None if sequence is None else response_usage(sequence),
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def response_usage(sequence: Sequence) -> Shape:
    """Usage in the words of /v1/responses; the details are always there."""
    return {
        "input_tokens": len(sequence.prompt),
        "input_tokens_details": {
            "cached_tokens": sequence.cached,
            "cache_write_tokens": 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": sequence.said,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": len(sequence.prompt) + sequence.said,
    }


def embeddings(request_id: str, created: int, model: str, vectors: list[list[float]], prompt_tokens: int) -> Shape:
    """POST /v1/embeddings of a pooling server."""
    data = [{"index": i, "object": "embedding", "embedding": vector} for i, vector in enumerate(vectors)]
    counts = {**usage(prompt_tokens, 0), "prompt_tokens_details": None, "completion_tokens_details": None}
    return {"id": request_id, "object": "list", "created": created, "model": model, "data": data, "usage": counts}
