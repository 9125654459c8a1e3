"""Which Prefect server a run would talk to, and whether it answers."""

import base64
import http.client
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib import metadata
from urllib.parse import urlsplit

from tasks.doctor_findings import Finding
from tasks.services import SERVER_PORT

ANSWER_S = 5
PASSWORD = "set PREFECT_API_AUTH_STRING to the name:password of that server"
REFUSALS = {401: PASSWORD, 403: PASSWORD, 404: "that is no Prefect API; set PREFECT_API_URL to http://HOST:PORT/api"}


def check_prefect(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The server of ``PREFECT_API_URL``, else of the profile; without one, every run starts a server for itself."""
    from prefect.settings import get_current_settings

    address = environment.get("PREFECT_API_URL") or get_current_settings().api.url
    if not address:
        yield Finding("prefect", "ok", "no PREFECT_API_URL: a run starts a temporary server of its own")
        yield check_port(SERVER_PORT)
        return
    try:
        shown = _without_secrets(address)
    except ValueError:  # its text repeats the address, and so a password in it
        text = "the server's address cannot be understood; set PREFECT_API_URL to http://HOST:PORT/api, or unset it"
        yield Finding("prefect", "error", text)
        return
    yield _asked(shown)


def check_port(port: int) -> Finding:
    """Whether ``mlcd up`` could have this port of loopback for its server."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        text = f"{port} cannot be listened on ({error.strerror}): mlcd up --port N takes another, or it is up already"
        return Finding("port", "warning", text)
    return Finding("port", "ok", f"{port} of 127.0.0.1 is free for mlcd up")


def _asked(address: str) -> Finding:
    """Ask a server for its version; a client newer than its server is refused by it."""
    ours = metadata.version("prefect")
    try:
        question = urllib.request.Request(f"{address.rstrip('/')}/admin/version", headers=_credentials())
        with urllib.request.urlopen(question, timeout=ANSWER_S) as answer:
            theirs = json.load(answer)
    except urllib.error.HTTPError as error:
        fix = REFUSALS.get(error.code, "look into the log of that server")
        return Finding("prefect", "error", f"{address} answers {error.code} ({error.reason}): {fix}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Finding(
            "prefect", "error", f"{address} does not answer ({error}): start that server, or unset PREFECT_API_URL"
        )
    if theirs != ours:
        text = f"{address} is Prefect {theirs}, this machine has {ours}: install the same version on both"
        return Finding("prefect", "warning", text)
    return Finding("prefect", "ok", f"{address} answers, Prefect {ours} on both sides")


def _credentials() -> dict[str, str]:
    """The header by which Prefect's own client is let in."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    if api.auth_string is not None:
        return {"Authorization": f"Basic {base64.b64encode(api.auth_string.get_secret_value().encode()).decode()}"}
    return {"Authorization": f"Bearer {api.key.get_secret_value()}"} if api.key is not None else {}


def _without_secrets(address: str) -> str:
    """Scheme, host, port and path; no user, password or query. Raises ValueError for a port that is none."""
    split = urlsplit(address)
    host = split.hostname or ""
    port = f":{split.port}" if split.port else ""
    return f"{split.scheme}://{host}{port}{split.path}"
