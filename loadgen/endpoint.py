"""What is asked of the server before the load: its model, its context window, and how it counts tokens."""

import json
import urllib.error
import urllib.request
from typing import Any

from loadgen.answer import error_message
from loadgen.errors import EndpointError
from loadgen.prompts import CountTokens


class Endpoint:
    """An OpenAI-compatible server at a base URL (without /v1)."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/")
        self.headers = {"content-type": "application/json"}
        if api_key:
            self.headers["authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        # no proxy of the environment: the load does not go through one either
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def models(self) -> list[dict[str, Any]]:
        """The models served, as /v1/models lists them; at least one. Raises EndpointError."""
        models = self._json("/v1/models", None).get("data")
        if not isinstance(models, list) or not models:
            raise EndpointError(f"{self.base_url}/v1/models lists no model")
        return models

    def token_counter(self, model: str) -> tuple[CountTokens, str]:
        """A function that counts a prompt's tokens, and the name of how it does so.

        `tokenize` asks /tokenize; where a server has no such path, `usage` reads usage.prompt_tokens of a request for
        one token.
        """
        try:
            self._tokenize(model, "So")
        except EndpointError as error:
            if error.status not in (404, 405, 501):
                raise
            return (lambda text: self._usage(model, text)), "usage"
        return (lambda text: self._tokenize(model, text)), "tokenize"

    def _tokenize(self, model: str, text: str) -> int:
        body = {"model": model, "messages": _messages(text), "add_generation_prompt": True}
        return _whole(self._json("/tokenize", body).get("count"), "/tokenize gave no count")

    def _usage(self, model: str, text: str) -> int:
        body = {"model": model, "messages": _messages(text), "max_tokens": 1}
        usage = self._json("/v1/chat/completions", body).get("usage") or {}
        return _whole(usage.get("prompt_tokens"), "/v1/chat/completions gave no usage.prompt_tokens")

    def _json(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        url = self.base_url + path
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(url, data=data, headers=self.headers)
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise EndpointError(f"{url}: HTTP {error.code}: {error_message(error.read())}", error.code) from error
        except (OSError, ValueError) as error:
            raise EndpointError(f"{url}: {getattr(error, 'reason', error)}") from error
        if not isinstance(answer, dict):
            raise EndpointError(f"{url}: the answer is not a JSON object")
        return answer


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _whole(value: object, otherwise: str) -> int:
    if not isinstance(value, int):
        raise EndpointError(otherwise)
    return value
