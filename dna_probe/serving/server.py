"""The process around the application: where it listens, and how it stops without losing a request."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dna_probe.errors import DnaProbeError

if TYPE_CHECKING:
    from fastapi import FastAPI

# Seconds in which, once no connection is taken any more, the requests that are on their way on open ones arrive.
GRACE = 0.5
# Seconds that running requests may take after that; a client that stalls must not keep the service from stopping.
PATIENCE = 60
_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        DnaProbeError: the host is not this machine's, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DnaProbeError(
            f"Nothing can listen on {host}, port {port}", reason, "Choose another --port or --host"
        ) from error


def run(application: FastAPI, listening: socket.socket, ready: Callable[[], object] = str) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer what was asked, and return.

    Args:
        ready: called once requests are answered and a signal ends the service well.
    """
    told: list[int] = []
    # uvicorn sends itself the signal again once it has stopped, which would end the process with its number.
    previous = {
        number: signal.signal(number, lambda n, _: told.append(n)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        _serve(application, listening, ready, told)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _serve(application: FastAPI, listening: socket.socket, ready: Callable[[], object], told: Sequence[int]) -> None:
    """Args: told: signals that came before uvicorn listened to them."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready()
            self.should_exit = self.should_exit or bool(told)

        async def shutdown(self, sockets: Any = None) -> None:
            closing.append(True)
            for server in self.servers:
                server.close()
            await asyncio.sleep(GRACE)
            await super().shutdown(sockets)

    # What is wrong with a form is told to who sent it.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    closing: list[bool] = []
    config = uvicorn.Config(
        _Hanging(application, closing),
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=PATIENCE,
    )
    Server(config).run([listening])


class _Hanging:
    """ASGI middleware: once the service is closing, each answer asks the client to leave the connection."""

    def __init__(self, app: Any, closing: list[bool]):
        self.app, self.closing = app, closing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def parting(message: Any) -> None:
            if message["type"] == "http.response.start" and self.closing:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, parting)
