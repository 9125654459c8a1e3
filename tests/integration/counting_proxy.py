"""A proxy before a Prefect server that counts the requests of a client, whatever else goes through it."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REQUEST = re.compile(rb"(?:GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")
CHUNK = 65_536


@dataclass
class Count:
    """The paths of the requests so far, and the address to send them to."""

    api: str
    paths: list[str] = field(default_factory=list)


@contextmanager
def counted(api: str) -> Iterator[Count]:
    """An address that answers as the server at ``api`` does, and the count of what was asked there."""
    split = urlsplit(api)
    assert split.hostname
    assert split.port
    with socket.create_server(("127.0.0.1", 0)) as listener:
        count = Count(f"http://127.0.0.1:{listener.getsockname()[1]}{split.path}")
        upstream = (split.hostname, split.port)
        threading.Thread(target=_serve, args=(listener, upstream, count), daemon=True).start()
        yield count


def _serve(listener: socket.socket, upstream: tuple[str, int], count: Count) -> None:
    with suppress(OSError):  # the listener is closed at the end
        while True:
            client, _ = listener.accept()  # closed by the thread that reads it, and so is the other
            server = socket.create_connection(upstream)
            for source, target, paths in ((client, server, count.paths), (server, client, None)):
                threading.Thread(target=_pass_on, args=(source, target, paths), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, paths: list[str] | None) -> None:
    with source, suppress(OSError):  # the other direction closes the other end
        while data := source.recv(CHUNK):
            if paths is not None:
                paths += [path.decode() for path in REQUEST.findall(data)]
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
