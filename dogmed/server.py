"""What our servers share: an address to listen on, and an end at SIGTERM as at Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from dogmed.errors import ConfigError


def listen(host: str, wanted: int) -> socket.socket:
    """Bind a socket to a port of an address; to a free one if the wanted one is busy.

    Raises:
        ConfigError: this machine cannot listen on the address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: there is no such address ({error.strerror})") from error
    for port in (wanted, 0):
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((address[0], port, *address[2:]))
        except OSError:
            bound.close()
            continue
        return bound
    raise ConfigError(f"--host {host}: this machine cannot listen on that address")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
