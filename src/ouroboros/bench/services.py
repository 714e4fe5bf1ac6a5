"""Who is asked by ``throughput``: an engine of this library, and llama.cpp's server with the same number of places."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ouroboros.bench.throughput import Task
from ouroboros.errors import LoadError
from ouroboros.serving.engine import Engine

__all__ = ["EngineService", "LlamaServer"]

PROGRAM = "llama-server"
STARTING = 120.0  # seconds for a server to load its model


class EngineService:
    """See throughput.Service."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self._engine = engine

    def ask(self, task: Task) -> Iterator[int]:
        ticket = self._engine.submit(
            list(task.prompt),
            max_new_tokens=task.new_tokens,
            temperature=task.temperature,
            seed=task.seed,
            ignore_eos=True,
        )
        for chunk in ticket:
            yield len(chunk.token_ids)


class LlamaServer:
    """See throughput.Service. As a context manager it ends the program.

    Args:
        file: a GGUF file of the same model. places: requests at once (-np). positions: of each. options: further words
            of its command line.

    Attributes:
        port: of the loopback interface.
    """

    def __init__(
        self,
        file: str,
        places: int,
        positions: int,
        threads: int,
        program: str = PROGRAM,
        options: Sequence[str] = (),
    ) -> None:
        """
        Raises:
            LoadError: the program is not on the PATH, the file is not there, or the server does not start.
        """
        self.name = "llama.cpp's server"
        path = shutil.which(program)
        if path is None:
            raise LoadError(f"{program} is not on the PATH; it comes with llama.cpp")
        if not Path(file).is_file():
            raise LoadError(f"there is no file {file!r} for {program}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        sizes = ["-np", str(places), "-c", str(places * positions), "-t", str(threads)]
        command = [path, "-m", file, *sizes, "--host", "127.0.0.1", "--port", str(self.port), *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + STARTING
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise LoadError(f"{PROGRAM} ended with status {self._process.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise LoadError(f"{PROGRAM} was not ready after {STARTING:g} seconds")

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, task: Task) -> Iterator[int]:
        asked = {
            "prompt": list(task.prompt),
            "n_predict": task.new_tokens,
            "temperature": task.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": task.seed % 2**32,
            "ignore_eos": True,
            "stream": True,
            "return_tokens": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/completion", json.dumps(asked), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise LoadError(f"{PROGRAM} answered with status {response.status}")
            for line in response:
                if line.startswith(b"data: {"):
                    told = json.loads(line[6:])
                    yield len(told.get("tokens") or ()) or int(not told.get("stop", False))
        finally:
            connection.close()
