"""The camera's page, for a box without a screen: pictures, numbers and switches over HTTP, health and Prometheus' metrics.

A viewer asks for the next result after the one that it has, and is answered when there is one: who reads slowly sees fewer
frames, who does not read holds one answer, and all of them are shown what the loop made once.
"""

import asyncio
import ipaddress
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from importlib.resources import files
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tasktok_edge.apps.live import Live
from tasktok_edge.errors import TaskTokEdgeError, UsageError
from tasktok_edge.runtimes.stream import Streamed

COOKIE = "tasktok_token"
WAIT_S = 1.0  # what a viewer waits for a new frame before it is told that there is none
SICK_S = 5.0  # without a result, after which /healthz says so
VIEWERS = 64  # connections at a time
GOODBYE_S = 0.4  # twice what the server is given to end
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2)  # of the metrics' histograms
PAGE = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token may be in the address once
    "Cache-Control": "no-store",
}


class Change(BaseModel):
    """What a viewer asks for; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = None
    budget: str | None = None
    bundle: int | None = None


class Wakening:
    """Wakes the viewers that wait in the server's event loop when the camera's loop, another thread, has a result."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()
        self.over = False

    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()

    def wake(self, *, over: bool = False) -> None:
        self.over = self.over or over
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._next.wait(), seconds)


def page(live: Live, *, token: str | None) -> FastAPI:
    """The application; with a token every request but /healthz must show it."""
    wakening, registry = Wakening(), CollectorRegistry()
    registry.register(_Numbers(live))
    spent = Histogram("tasktok_seconds", "time of a result, by part", ["part"], registry=registry, buckets=SECONDS)

    def seen(one: Streamed | None) -> None:
        if one is not None:
            for part, ms in (("queue", one.queue_ms), ("inference", one.inference_ms), ("end_to_end", one.end_to_end_ms)):
                if not (part == "inference" and one.still):
                    spent.labels(part).observe(ms / 1e3)
        wakening.wake(over=one is None)

    live.on_result = seen

    @asynccontextmanager
    async def begin(_: FastAPI) -> AsyncIterator[None]:
        wakening.begin()
        yield

    def allowed(request: Request) -> None:
        if token is not None:
            shown = request.headers.get("authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
            if not secrets.compare_digest(shown.encode(), token.encode()):
                raise HTTPException(401, "a token is needed: the address that was printed at the start has it")

    app = FastAPI(title="tasktok-edge camera", lifespan=begin, docs_url=None, redoc_url=None, openapi_url=None)
    checked = [Depends(allowed)]

    @app.middleware("http")
    async def with_headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/healthz")
    def healthz() -> Response:
        age, ended = live.age_s(), live.results is None or live.results.ended
        well = age is not None and age < SICK_S and not ended
        told = "ok" if well else "the source has ended" if ended else f"no result for {SICK_S:g} s" if age else "no result yet"
        return JSONResponse({"status": told}, 200 if well else 503)

    @app.get("/metrics", dependencies=checked)
    def metrics() -> Response:
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/api/live", dependencies=checked)
    async def next_result(after: int = -1, answer: bool = True) -> Response:
        """Four bytes, big-endian: length of the JSON that follows; behind it two JPEGs, whose lengths are in the JSON."""
        wait = asyncio.get_running_loop().time() + WAIT_S
        while (live.shown is None or live.shown.one.index <= after) and not wakening.over:
            left = wait - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await wakening.wait(left)
        shown, told, pictures = live.shown, live.state(), (b"", b"")
        if shown is not None and shown.one.index > after:
            pictures = await asyncio.to_thread(shown.pictures, answer=answer)
            told |= {"result": shown.told}
        head = json.dumps(told | {"pictures": [len(p) for p in pictures]}).encode()
        return Response(b"".join([len(head).to_bytes(4, "big"), head, *pictures]), media_type="application/octet-stream")

    @app.post("/api/change", dependencies=checked)
    def change(wanted: Change, request: Request) -> dict[str, str]:
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise HTTPException(403, f"the page of {origin} may not change this camera")
        try:
            live.wish(**wanted.model_dump())
        except UsageError as error:
            raise HTTPException(422, str(error)) from None
        except TaskTokEdgeError as error:
            raise HTTPException(503, str(error)) from None
        return {"status": "ok"}

    @app.get("/")
    def index(request: Request, given: Annotated[str, Query(alias="token")] = "") -> Response:
        if token is not None and secrets.compare_digest(given.encode(), token.encode()):
            response: Response = RedirectResponse("/", 303)  # out of the address, and of what a browser remembers of it
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response
        allowed(request)
        return _asset("index.html")

    @app.get("/{name}", dependencies=checked)
    def asset(name: str) -> Response:
        if name not in PAGE:
            raise HTTPException(404, f"there is no {name} here")
        return _asset(name)

    return app


def _asset(name: str) -> Response:
    return Response((files("tasktok_edge") / "assets" / "camera" / name).read_bytes(), media_type=PAGE[name])


class _Numbers(Collector):
    """The stream's counts as they are when they are asked for."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterable[Metric]:
        frames = CounterMetricFamily("tasktok_frames", "frames by what became of them", labels=["outcome"])
        if self._live.results is not None:
            for outcome, n in asdict(self._live.results.counts).items():
                frames.add_metric([outcome], n)
        events = CounterMetricFamily("tasktok_events", "events of the source, the model and the sinks", labels=["kind"])
        for kind, n in list(self._live.told.items()):
            events.add_metric([kind], n)
        age = GaugeMetricFamily("tasktok_result_age_seconds", "since the frame of the last result was captured")
        if (seconds := self._live.age_s()) is not None:
            age.add_metric([], seconds)
        return frames, events, age


@contextmanager
def serving(live: Live, address: str, token: str | None) -> Iterator[str]:
    """Serve the page in a thread of its own while the block runs; gives its address, with a token where one is needed.

    `address` is PORT, for this machine alone, or HOST:PORT. Without a `token` one is made up where others can reach the host.
    UsageError where it cannot be had.
    """
    host, port = _split(address)
    alone = _is_loopback(host)
    known = token or (None if alone else secrets.token_urlsafe(24))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
            door.listen(VIEWERS)  # who comes before the server is up waits
        except OSError as error:
            raise UsageError(f"--serve {address}: {error.strerror}; name another port or host") from None
        app = page(live, token=known)
        if alone:  # another site's name that points here must not reach it
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host])
        config = uvicorn.Config(app, log_level="critical", access_log=False, ws="none", limit_concurrency=VIEWERS)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([door],), name="tasktok-page", daemon=True)
        thread.start()
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        try:
            yield f"http://{shown}:{door.getsockname()[1]}/" + (f"?token={known}" if known else "")
        finally:
            live.on_result(None)
            server.should_exit = True
            thread.join(GOODBYE_S)
            server.force_exit = True  # a viewer that does not read is not waited for
            thread.join(GOODBYE_S)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UsageError(f"--serve {address}: give PORT, such as 8080, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
