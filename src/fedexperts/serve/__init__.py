"""A local page: drop an image or type a text, and see the class and the experts' shares.

    application(predictor)     what answers: the page, and POST /say
    listen(host, port)         the door, opened before anything is promised; see door.py
    server(application)        runs at the door until it is stopped

What is sent is predicted and forgotten. The page is page.html, page.css and page.js, and loads
nothing from elsewhere. This room does not know how an image is read, nor what a method learns.
"""

import asyncio
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..data.images import SUFFIXES, decoded
from ..options import Values
from ..predict import Learned
from .door import PATIENCE, Hearing, listen, server

__all__ = ["LARGEST", "LONGEST", "LOOPBACK", "WAITING", "application", "listen", "server"]

LARGEST = 2**25  # bytes of an image: more than phones make
LONGEST = 2**16  # bytes of a text: more than models read
WAITING = 8  # questions that are whole and wait for their turn
LOOPBACK = ("127.0.0.1", "localhost")
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def application(predictor: Learned, host: str = LOOPBACK[0]) -> Starlette:
    """What answers at `host`; on loopback, only under loopback's own names."""
    most = LONGEST if predictor.side is None else LARGEST
    hearing, queue = Hearing(), asyncio.Semaphore(WAITING)
    turn = asyncio.Lock()  # one computation at a time, while the server goes on answering

    async def say(request: Request) -> Response:
        if _foreign(request):
            return _wrong("only this server's own page may ask", 403)
        try:
            body = await hearing.whole(request.stream(), most)
            if body is None:
                return _wrong(f"it is larger than {most:,} bytes, the limit", 413)
            if queue.locked():
                return _wrong("too many requests at once: try again in a moment", 503)
            async with queue, turn:
                if await request.is_disconnected():
                    return Response()  # who left while others had their turn costs nothing
                return _answer(await run_in_threadpool(_said, predictor, body))
        except TimeoutError:
            return _wrong(
                f"it did not arrive within {PATIENCE:g} seconds, or the server is too busy", 408
            )
        except ClientDisconnect:
            return Response()  # nobody is there to read it
        except ValueError as error:
            return _wrong(str(error), 400)

    suffixes = None if predictor.side is None else SUFFIXES
    about = _answer({"name": predictor.config.name, "who": predictor.who, "suffixes": suffixes})
    files = [Route(path, _file(name, kind), methods=["GET"]) for path, (name, kind) in PAGE.items()]
    routes = [*files, Route("/about", about, methods=["GET"]), Route("/say", say, methods=["POST"])]
    hosts = list(LOOPBACK) if host in LOOPBACK else ["*"]
    return Starlette(
        routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    )


def _file(name: str, kind: str) -> Response:
    return Response((Path(__file__).parent / name).read_bytes(), media_type=kind, headers=HEADERS)


def _foreign(request: Request) -> bool:
    """Whether a browser says that another page asks. Other programs do not say."""
    host = request.headers["host"]
    origin = request.headers.get("origin", host).rpartition("://")[2]
    return origin != host or request.headers.get("sec-fetch-site", "same-origin") != "same-origin"


def _wrong(why: str, status: int) -> Response:
    return _answer({"error": why}, status)


def _answer(content: Values, status: int = 200) -> Response:
    return JSONResponse(content, status, HEADERS)


def _said(predictor: Learned, body: bytes) -> Values:
    """A prediction as the page shows it: classes and experts, the largest first."""
    if not body.strip():
        raise ValueError("it is empty")
    given: Any
    if predictor.side is None:
        given = [_text(body)]
    else:
        given = decoded(body, predictor.side, predictor.bits)
    (prediction,) = predictor.say([""], given, most=len(predictor.model.classes))
    experts = sorted(prediction.experts.items(), key=lambda pair: -pair[1])
    return {
        "class": prediction.label,
        "probability": prediction.probability,
        "classes": list(prediction.classes.items()),
        "experts": experts,
    }


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error.reason})") from None
