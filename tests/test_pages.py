"""
The admin listener's plain pages, and errors in OpenAI's shape on every route.
"""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from proxy.errors import NotFound
from proxy.pages import exact_page, openai_errors, status_routes


async def _page(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the page"})


def client(ready: Callable[[], str | None] = lambda: None) -> TestClient:
    app = FastAPI()
    openai_errors(app)
    app.include_router(status_routes(ready=ready))
    app.router.routes.append(exact_page("/metrics", _page))

    @app.get("/named")
    def named() -> None:
        raise NotFound("there is no such thing", param="thing")

    return TestClient(app, follow_redirects=False)


def test_healthz_lives_whatever_is_missing() -> None:
    """The process answers; that is all it says."""
    answer = client(lambda: "everything is missing").get("/healthz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(("missing", "expected"), [(None, (200, "ready")), ("no meter yet", (503, "no meter yet"))])
def test_readyz_says_what_is_missing(missing: str | None, expected: tuple[int, str]) -> None:
    """In words, for whoever looks at a pod that does not become ready."""
    answer = client(lambda: missing).get("/readyz")

    assert (answer.status_code, answer.text) == expected


def test_a_page_is_at_its_path_without_a_redirect() -> None:
    """A scraper that does not follow redirects gets it too."""
    assert client().get("/metrics").text == "the page"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("POST", "/healthz", 405)])
def test_errors_of_the_framework(method: str, path: str, status: int) -> None:
    """They say what was asked, in OpenAI's shape."""
    answer = client().request(method, path)

    assert answer.status_code == status
    assert answer.json()["error"]["message"].endswith(f"{method} {path}")
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_errors_of_ours() -> None:
    """Status, type, code and parameter are those of the error."""
    answer = client().get("/named")

    expected = {"message": "there is no such thing", "type": "invalid_request_error", "param": "thing"}
    assert (answer.status_code, answer.json()["error"]) == (404, expected | {"code": "not_found"})
