"""What is written in an afternoon: FastAPI, httpx, StreamingResponse. The reference of how not to."""

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()
engine = httpx.AsyncClient(
    base_url=f"http://127.0.0.1:{os.environ['ENGINE_PORT']}", timeout=600, limits=httpx.Limits(max_connections=None)
)


@app.post("/{path:path}")
async def relay(path: str, request: Request) -> StreamingResponse:
    """Passes one request on."""
    headers = {"content-type": request.headers.get("content-type", "application/json")}
    asked = engine.build_request("POST", f"/{path}", content=await request.body(), headers=headers)
    answer = await engine.send(asked, stream=True)

    async def body() -> AsyncIterator[bytes]:
        async for chunk in answer.aiter_raw():
            yield chunk
        await answer.aclose()

    kind = answer.headers.get("content-type")
    return StreamingResponse(body(), status_code=answer.status_code, media_type=kind)
