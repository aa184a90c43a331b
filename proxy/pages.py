"""The plain pages of the admin listener, and errors in OpenAI's shape on every route."""

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import BadRequest, RequestError
from proxy.wire.energy import error_body


def _answer(error: RequestError, status: int | None = None) -> Response:
    body = error_body(error.message, type=error.type, code=error.code, param=error.param)
    return Response(body, status_code=status or error.status, media_type="application/json")


def openai_errors(app: FastAPI) -> None:
    """Makes every error of this application an OpenAI error object."""

    @app.exception_handler(RequestError)
    async def named(request: Request, error: RequestError) -> Response:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _answer(BadRequest(f"{where}: {first['msg']}", param=where))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return _answer(RequestError(f"{error.detail}: {request.method} {request.url.path}"), error.status_code)


class _Whole:
    """An ASGI application that is no function: a Route hands such a one the exchange as it is."""

    def __init__(self, page: ASGIApp) -> None:
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._page(scope, receive, send)


def exact_page(path: str, page: ASGIApp) -> Route:
    """An application at one path; a mount would answer that path with a redirect to the one with a slash."""
    return Route(path, _Whole(page))


def status_routes(*, ready: Callable[[], str | None]) -> APIRouter:
    """/ shows what happens; /healthz says that the process lives; /readyz that it can take and meter requests."""
    routes = APIRouter()
    page = (Path(__file__).parent / "live.html").read_text()

    @routes.get("/", include_in_schema=False)
    def live() -> HTMLResponse:
        """The live page; it reads /energy/* and nothing from elsewhere."""
        return HTMLResponse(page)

    @routes.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    def readyz() -> Response:
        """200 when requests can be taken and metered, else 503 with what is missing."""
        missing = ready()
        return Response(missing or "ready", status_code=503 if missing else 200, media_type="text/plain")

    return routes
