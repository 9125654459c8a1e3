"""A user's services and a whole run where no other machine can be reached, and what listens meanwhile.

The commands run in a network namespace of their own: every socket that listens there is theirs, and a connection to
any address but loopback fails. It has an address on a wire to nowhere, which the host's name means as in most networks:
what listens on that one, or on all, would be open to others.
"""

import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.harness import BIN, TINY, write_scenes

NAMESPACE = ["unshare", "--map-root-user", "--net", "--mount", "--"]
WIRE = """
    set -e
    ip link set lo up
    ip link add wire type veth peer name nowhere
    ip address add 192.0.2.2/24 dev wire
    ip link set wire up
    ip link set nowhere up
    ip route add default dev wire
    printf '127.0.0.1 localhost\\n192.0.2.2 %s\\n' "$(hostname)" >"$HOSTS"
    mount --bind "$HOSTS" /etc/hosts
    set +e
"""
LISTENING = "0A"
PORT = 4200
RUN_S = 400


def can_make_namespaces() -> bool:
    """Not in every container, and on Linux alone."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    with tempfile.NamedTemporaryFile() as hosts:
        command = [*NAMESPACE, "bash", "-c", WIRE]
        done = subprocess.run(command, capture_output=True, env={**os.environ, "HOSTS": hosts.name}, check=False)
    return done.returncode == 0


def listeners(pid: int) -> set[str]:
    """Addresses that sockets of a process's network namespace listen on."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == LISTENING:
                found.add(spelled(address.partition(":")[0]))
    return found


def is_apart(pid: int) -> bool:
    """Whether the process has left this one's network namespace by now."""
    own, other = (Path(f"/proc/{of}/ns/net").readlink() for of in ("self", pid))
    return own != other


def spelled(address: str) -> str:
    """The kernel's hex words of an address, each in the machine's byte order."""
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)


def is_loopback(address: str) -> bool:
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"


def test_the_addresses_of_the_kernel_are_read() -> None:
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert {"127.0.0.1", "::1"} <= listeners(os.getpid())
    assert spelled("00000000") == "0.0.0.0"
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")


@pytest.mark.skipif(not can_make_namespaces(), reason="this user makes no network namespaces")
def test_a_deployed_run_passes_and_nothing_listens_elsewhere(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", "train", shards=2)
    write_scenes(tmp_path / "data", "test", shards=1)
    given = {
        "data": f"{tmp_path}/data/train-*.parquet",
        "eval_data": f"{tmp_path}/data/test-*.parquet",
        "label_column": "labels",
        "root": f"{tmp_path}/root",
        "overrides": TINY,
    }
    parameters = [word for key, value in given.items() for word in ("-p", f"{key}={json.dumps(value)}")]
    run = ["prefect", "deployment", "run", "pipeline/local", *parameters, "--watch", "--watch-timeout", str(RUN_S)]
    script = f"""
        {WIRE}
        ! timeout 10 bash -c 'exec 3<>/dev/tcp/198.51.100.7/80' || exit 99  # an address that is in no network
        mlcd up --port {PORT} || exit 98
        {shlex.join(run)}
        code=$?
        mlcd down || exit 97
        exit $code
    """
    environment = {
        **os.environ,
        "HOSTS": str(tmp_path / "hosts"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PREFECT_API_URL": f"http://127.0.0.1:{PORT}/api",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    seen: set[str] = set()
    with (tmp_path / "log").open("w") as log:
        command = [*NAMESPACE, "bash", "-c", script]
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
        while child.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was asked
                if is_apart(child.pid):
                    seen |= listeners(child.pid)
            time.sleep(0.02)
    assert child.returncode == 0, (tmp_path / "log").read_text()
    assert len(list((tmp_path / "root").glob("evaluate/*/manifests/*.json"))) == 1
    assert seen
    assert {address for address in seen if not is_loopback(address)} == set()
