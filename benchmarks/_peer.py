"""A stock server of one plain model beside the replica: MLServer, in a virtual environment of its own.

What is not needed is off: metrics, worker processes, access logs and compression. Its gRPC server cannot be switched
off; nobody asks it.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from _latest import RESULTS

MODEL: Final = "plain"
_HERE: Final = Path(__file__).parent
_REQUIREMENTS: Final = _HERE / "_peer_requirements.txt"
VERSION: Final = _REQUIREMENTS.read_text().partition("\nmlserver==")[2].split()[0]
_START_S: Final = 60.0


def installed() -> Path:
    """The program `mlserver`; its environment is made where it is not there yet, and again when the pins change."""
    directory = RESULTS / "peer-venv"
    program, made_of = directory / "bin" / "mlserver", directory / "requirements.txt"
    pins = _REQUIREMENTS.read_text()
    if not made_of.exists() or made_of.read_text() != pins:
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, f"--requirement={_REQUIREMENTS}"], check=True)
        made_of.write_text(pins)
    return program


@contextmanager
def peer(cores: int) -> Iterator[http.client.HTTPConnection]:
    """The server, ready, and a connection to it."""
    program = installed()
    with tempfile.TemporaryDirectory() as directory:
        http_port, grpc_port = _free_ports(2)
        settings = {
            "host": "127.0.0.1",
            "http_port": http_port,
            "grpc_port": grpc_port,
            "metrics_endpoint": None,
            "parallel_workers": 0,
            "debug": False,
            "gzip_enabled": False,
        }
        model = {"name": MODEL, "implementation": f"{_HERE.name}._peer_mlserver.Plain"}
        Path(directory, "settings.json").write_text(json.dumps(settings))
        Path(directory, "model-settings.json").write_text(json.dumps(model))
        environment = os.environ | {"PYTHONPATH": str(_HERE.parent), "OPENBLAS_NUM_THREADS": str(cores)}
        command = [str(program), "start", directory]
        log = Path(directory, "log")
        with (
            log.open("w") as file,
            subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=directory) as process,
        ):
            try:
                _await(http_port, process, log)
                with closing(http.client.HTTPConnection("127.0.0.1", http_port, timeout=600)) as connection:
                    yield connection
            finally:
                process.terminate()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _await(port: int, process: "subprocess.Popen[Any]", log: Path) -> None:
    until = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < until:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
            try:
                connection.request("GET", f"/v2/models/{MODEL}/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
        time.sleep(0.1)
    raise RuntimeError(f"MLServer does not answer:\n{log.read_text()[-2000:]}")
