"""The page at ``/`` and its files, under a policy that lets them load nothing from elsewhere."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

__all__ = ["serve_page"]

WEB = Path(__file__).parent / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
PAGE = {"content-security-policy": f"{POLICY}; frame-ancestors 'none'", "referrer-policy": "no-referrer"}


def serve_page(app: FastAPI) -> list[str]:
    """Serves the page and its files, those that were there when the server began. Returns their paths."""
    files = {f"/{file.relative_to(WEB).as_posix()}": file for file in sorted(WEB.rglob("*")) if file.is_file()}
    if "/index.html" in files:
        files["/"] = files["/index.html"]

    def serve(path: str, file: Path) -> None:
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        data = file.read_bytes()

        async def page() -> Response:
            return Response(data, media_type=kind, headers=PAGE)

        app.get(path, include_in_schema=False)(page)

    for path, file in files.items():
        serve(path, file)
    if "/" not in files:

        @app.get("/", include_in_schema=False)
        async def plain() -> Response:
            return PlainTextResponse("Ouroboros is running: POST /v1/chat/completions, GET /v1/models, GET /health\n")

    return [*files, "/"]
