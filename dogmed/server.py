"""What our servers share: an address to listen on, and an end at SIGTERM as at Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from dogmed.errors import ConfigError


def listen(host: str, wanted: int) -> socket.socket:
    """Listen on a port of an address; on a free one if the wanted one is busy.

    Raises:
        ConfigError: there is no such address, or this machine cannot listen on it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: there is no such address ({error})") from error
    for port in (wanted, 0):
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((address[0], port, *address[2:]))
            bound.listen()  # a port is not taken before
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE and port == wanted:
                continue
            where = f"--host {host} --port {port}"
            raise ConfigError(f"{where}: cannot listen there ({error.strerror})") from error
        return bound
    raise AssertionError("a free port is free")


def address(bound: socket.socket) -> str:
    """The URL of a server on this machine, without a slash at its end."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether a server is reached from this machine alone."""
    host = ipaddress.ip_address(bound.getsockname()[0])
    mapped = getattr(host, "ipv4_mapped", None)
    return (mapped or host).is_loopback


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that nothing of a server outlives the command."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
