"""The application: takes a recording over HTTP and returns what several models hear in it.

    BACKLINE_URL=http://127.0.0.1:8000 uvicorn app:app
    curl -F recording=@song.ogg http://127.0.0.1:8080/analyse

The application contains no model and no runtime. It knows the names of models (`findings.py`) and the
addresses of servers: BACKLINE_URL may name one server, several, or a DNS name for all of them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, UploadFile
from findings import analyse

import backline
from backline_client.client.errors import BacklineError, InvalidArgument

_MAX_BYTES = 64 << 20


@asynccontextmanager
async def _connected(application: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("BACKLINE_URL", "http://127.0.0.1:8000")
    async with backline.connect_async(url) as client:
        application.state.models = client
        yield


app = FastAPI(title="Music service", lifespan=_connected)


@app.post("/analyse")
async def analyse_recording(request: Request, response: Response, recording: UploadFile) -> dict[str, Any]:
    """Returns notes, key and tempo, and whether it is speech or music. A value that no model could give is
    null, with the reason.
    """
    if recording.size is None or recording.size > _MAX_BYTES:
        raise HTTPException(413, f"the recording is larger than {_MAX_BYTES >> 20} MiB")
    try:
        found = await analyse(request.app.state.models, await recording.read())
    except InvalidArgument as error:
        raise HTTPException(422, f"{recording.filename} is no recording: {error.message}") from None
    if all(finding.value is None for finding in found.values()):
        response.status_code = 503
    return {name: finding.answer() for name, finding in found.items()}


@app.get("/live")
async def live() -> dict[str, str]:
    """Answers 200 while the process works, whether or not there are models."""
    return {"status": "live"}


@app.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Answers 200 if a model server can be reached."""
    try:
        await request.app.state.models.live(timeout=2)
    except BacklineError as error:
        raise HTTPException(503, error.message) from None
    return {"status": "ready"}
