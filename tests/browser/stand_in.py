"""A stand-in for a serving replica: canned answers, in place of a bank, to what the page asks.

The stand-in knows the tasks 0 to 4 of seed 0. It finds a request's task as a mask would have to: under the right
order of pixels a drawing is smooth.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

_PAGE: Final = Path(__file__).parents[2] / "daemon" / "page"
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_OPEN: Final = {*_FILES, "/favicon.ico"}
_KNOWN_TASKS: Final = 5
_START_S: Final = 10.0
HOSTILE_STREAM: Final = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def permutation(seed: int, task: int) -> np.ndarray:
    return np.random.default_rng((seed, task)).permutation(784)


@dataclass
class StandIn:
    """What the server says; tests change it while it runs.

    Attributes:
        overview: the answer to /overview.
        url: where the server is, once it runs.
        stop: ends it.
    """

    overview: dict[str, Any]
    token: str = ""
    url: str = ""
    stop: Callable[[], None] = lambda: None
    orders: list[np.ndarray] = field(default_factory=lambda: [permutation(0, task) for task in range(_KNOWN_TASKS)])

    async def _file(self, request: Request) -> Response:
        name, content_type = _FILES[request.url.path]
        headers = {"content-type": content_type, "content-security-policy": "default-src 'self'"}
        return Response((_PAGE / name).read_bytes(), headers=headers)

    async def _overview(self, _: Request) -> Response:
        return JSONResponse(self.overview)

    async def _permutation(self, request: Request) -> Response:
        seed, task = int(request.query_params["seed"]), int(request.query_params["task"])
        return JSONResponse({"seed": seed, "task": task, "order": permutation(seed, task).tolist()})

    async def _infer(self, request: Request) -> Response:
        if request.path_params["model"] != self.overview["bank"]:
            return JSONResponse({"error": f"no model {request.path_params['model']}"}, status_code=404)
        asked = await request.json()
        (x,) = asked["inputs"]
        if (x["name"], x["shape"], x["datatype"]) != ("x", [1, 28, 28], "UINT8"):
            return JSONResponse({"error": "x is 1 x 28 x 28 of UINT8"}, status_code=400)
        return JSONResponse(self._answer(np.array(x["data"], np.uint8)))

    def _answer(self, image: np.ndarray) -> dict[str, Any]:
        undone = [image[np.argsort(order)].reshape(28, 28).astype(float) for order in self.orders]
        rough = np.array([np.abs(np.diff(each, axis=1)).sum() for each in undone]) / (image.sum() + 1e-9)
        task = int(rough.argmin())
        novel = bool(rough[task] > 1.2)
        label = int(undone[task].argmax() % 10)
        probabilities = np.full(10, 0.075 if novel else 0.003)
        probabilities[label] = 1 - 9 * probabilities[0]
        outputs = [
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [label]},
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 10], "data": probabilities.tolist()},
            {"name": "task", "datatype": "INT64", "shape": [1], "data": [task]},
            {"name": "confidence", "datatype": "FP32", "shape": [1], "data": [float(probabilities[label])]},
            {"name": "novel", "datatype": "BOOL", "shape": [1], "data": [novel]},
        ]
        version = str(self.overview["version"])
        return {"model_name": self.overview["bank"], "model_version": version, "outputs": outputs}

    def application(self) -> ASGIApp:
        """All of it; the page's files, like a browser's question for an icon, need no token."""
        routes = [
            *(Route(path, self._file) for path in _FILES),
            Route("/favicon.ico", lambda _: Response(status_code=204)),
            Route("/overview", self._overview),
            Route("/permutation", self._permutation),
            Route("/v2/models/{model}/infer", self._infer, methods=["POST"]),
        ]
        inner = Starlette(routes=routes)

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            brought = dict(scope.get("headers", ())).get(b"authorization", b"")
            if not self.token or scope["path"] in _OPEN or brought == b"Bearer " + self.token.encode():
                await inner(scope, receive, send)
            else:
                await PlainTextResponse("Unauthorized", status_code=401)(scope, receive, send)

        return guarded


def overview_of(masks: int = _KNOWN_TASKS, *, busy: int = 8) -> dict[str, Any]:
    """A bank of so many masks, the first of them busy."""
    now_ms = int(time.time() * 1000)
    draws = np.random.default_rng(7)
    stats = []
    for mask in range(masks):
        wave = 40 * np.exp(-(((np.arange(60) - 8 * mask) / 12) ** 2)) + draws.integers(0, 6, 60)
        traffic = wave.astype(int).tolist() if mask < busy else []
        stats.append(
            {
                "id": mask,
                "batches": 193 + 31 * mask,
                "samples": 128 * (193 + 31 * mask),
                "accuracy": 0.91 - 0.03 * (mask % 7),
                "loss": 0.31,
                "entropy": 0.28 + 0.05 * (mask % 5),
                "density": 0.5,
                "updated_ms": now_ms - 7000 * mask**2,
                "answered": sum(traffic),
                "traffic": traffic,
            }
        )
    decisions = [
        {"version": 12, "time_ms": now_ms - 4000, "type": "reuse", "text": "digits:0@1800  drift: back to mask 1"},
        {
            "version": 11,
            "time_ms": now_ms - 95_000,
            "type": "allocate",
            "text": f"{HOSTILE_STREAM}@1200  drift: new mask",
        },
        {
            "version": 9,
            "time_ms": now_ms - 400_000,
            "type": "allocate",
            "text": "digits:0@900  first batch: new mask 0",
        },
    ]
    return {
        "bank": "demo",
        "version": 12,
        "masks": masks,
        "budget": 2500,
        "ready": True,
        "reasons": {},
        "staleness_s": 0.4,
        "staleness_limit_s": 30.0,
        "fingerprint": "5f0c9a77e21b4d3388aa",
        "network": {"architecture": "lenet-300-100", "input_shape": [28, 28], "classes": 10, "outputs": 500},
        "threshold": 0.75,
        "requests": {"answered": 1210, "rows": 1214, "refused": 3, "failed": 0},
        "traffic_interval_s": 5.0,
        "mask_stats": stats,
        "decisions": decisions,
    }


@contextlib.contextmanager
def serving(replica: StandIn) -> Iterator[StandIn]:
    config = uvicorn.Config(
        replica.application(), host="127.0.0.1", port=0, log_config=None, lifespan="off", ws="none", access_log=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_S
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop() -> None:
        server.should_exit = True
        thread.join(_START_S)

    replica.url, replica.stop = f"http://127.0.0.1:{port}/", stop
    try:
        yield replica
    finally:
        stop()
