"""``mlcd doctor``: what would fail is an error, what is odd a warning; nothing is left behind, no secret is shown."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from io import BytesIO
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from PIL import Image

from mlcd_core.errors import DataError
from mlcd_core.store import LocalFiles
from tasks import doctor, doctor_data, doctor_machine, doctor_prefect, doctor_storage
from tasks.doctor_findings import Finding
from tests.servers import free_port, make_bucket, s3_environment, s3_server

CANARY = "canary-9f3b-secret"


def image(size: int = 20) -> bytes:
    data = BytesIO()
    Image.new("RGB", (size, size), "red").save(data, "PNG")
    return data.getvalue()


def shard(path: Path, **columns: list[object] | pa.Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def texts(findings: list[Finding], state: str) -> list[str]:
    return [f"{finding.subject}: {finding.text}" for finding in findings if finding.state == state]


@contextmanager
def server_of_no_http() -> Iterator[int]:
    """A port that answers everything with a line of another protocol, as an SSH server does."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"SSH-2.0-server\r\n")
            while self.rfile.readline().strip():
                pass

    with TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def prefect_server(answer: str, status: int = 200) -> Iterator[str]:
    """A server that gives one answer to everything; yields its address without the scheme."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()
            thread.join()


def test_a_fit_machine_has_no_errors_and_nothing_is_left_behind(tmp_path: Path) -> None:
    data = shard(tmp_path / "data" / "a.parquet", key=["x"], jpg=[image()])
    before = sorted(tmp_path.rglob("*"))
    findings = doctor.diagnose(str(tmp_path / "new" / "root"), str(data.parent), environment={})
    assert texts(findings, "error") == []
    subjects = {finding.subject for finding in findings}
    assert subjects == {
        *("python", "packages", "ray", "cores", "memory", "gpu", "prefect", "port", "storage", "disk", "data", "images")
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_in_use_keeps_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default.json").write_text("{}")
    assert {finding.state for finding in doctor_storage.check_store(str(tmp_path))} == {"ok"}
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["runs", "runs/default.json"]


def test_a_root_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(texts(list(doctor._storage_and_data(str(tmp_path / "file" / "root"), "")), "error")) == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_store_that_lets_names_be_created_twice_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: LocalFiles, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True

    monkeypatch.setattr(LocalFiles, "create", create)
    findings = list(doctor_storage.check_store(str(tmp_path)))
    assert texts(findings, "error") == []
    assert any("never start two runs on one root" in text for text in texts(findings, "warning"))


def test_storage_on_s3_is_probed_and_a_silent_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as endpoint:
        make_bucket(endpoint, "bucket")
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        findings = list(doctor_storage.check_store("s3://bucket/root"))
        assert texts(findings, "error") == []
        assert any("ms to write" in text for text in texts(findings, "ok"))
    monkeypatch.setattr(doctor_storage, "PATIENCE_S", 0.0)
    findings = list(doctor._storage_and_data("s3://bucket/root", "s3://bucket/data"))
    assert len(texts(findings, "error")) == 1
    assert texts(findings, "warning") == ["data: not looked at: the storage does not answer"]


@pytest.mark.parametrize(
    ("answer", "status", "state", "said"),
    [
        (json.dumps(metadata.version("prefect")), 200, "ok", "on both sides"),
        ('"3.0.0"', 200, "warning", "install the same version on both"),
        ("<html>", 200, "error", "does not answer"),
        ("", 401, "error", "set PREFECT_API_AUTH_STRING"),
        ("", 404, "error", "http://HOST:PORT/api"),
        ("", 500, "error", "look into the log of that server"),
    ],
)
def test_the_prefect_server_is_asked_for_its_version(answer: str, status: int, state: str, said: str) -> None:
    with prefect_server(answer, status) as address:
        [finding] = doctor_prefect.check_prefect({"PREFECT_API_URL": f"http://me:{CANARY}@{address}?key={CANARY}"})
    assert finding.state == state
    assert said in finding.text
    assert address in finding.text
    assert CANARY not in finding.text


def test_a_port_that_is_taken_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert doctor_prefect.check_port(port).state == "warning"
    assert doctor_prefect.check_port(port).state == "ok"


def test_a_prefect_server_that_is_away_is_an_error() -> None:
    address = f"http://127.0.0.1:{free_port()}/api"
    [finding] = doctor_prefect.check_prefect({"PREFECT_API_URL": address})
    assert finding.state == "error"
    assert "unset PREFECT_API_URL" in finding.text


@pytest.mark.parametrize("port", ["port", "99999", "-1"])
def test_an_address_that_is_none_is_an_error_and_not_shown(port: str) -> None:
    [finding] = doctor_prefect.check_prefect({"PREFECT_API_URL": f"http://me:{CANARY}@127.0.0.1:{port}/api"})
    assert finding.state == "error"
    assert "http://HOST:PORT/api" in finding.text
    assert CANARY not in finding.text


def test_a_port_that_speaks_no_http_is_an_error() -> None:
    with server_of_no_http() as port:
        [finding] = doctor_prefect.check_prefect({"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
    assert finding.state == "error"
    assert "does not answer (SSH-2.0-server" in finding.text


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_torch_that_cannot_be_imported_is_an_error(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}('libcudart.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    [finding] = doctor_machine.check_gpus()
    assert finding.state == "error"
    assert "torch cannot be imported: libcudart.so" in finding.text


def test_packages_that_are_missing_or_not_the_tested_ones_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = (
        *("nowhere-to-be-found>=2", "numpy==0.1", "pyarrow<1", f"pillow=={metadata.version('pillow')}", "ray[data]>=1"),
        *("pytest>=1; extra == 'dev'", "pydantic>=99; python_version < '3'"),
    )
    installed = tmp_path / "mlcd-9.dist-info" / "METADATA"
    installed.parent.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: mlcd", "Version: 9", *(f"Requires-Dist: {line}" for line in required)]
    installed.write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    findings = list(doctor_machine.check_packages())
    assert texts(findings, "error") == ["packages: missing: nowhere-to-be-found>=2; install mlcd again"]
    [warning] = texts(findings, "warning")
    wrong = f"numpy {metadata.version('numpy')} (expected numpy==0.1), pyarrow {metadata.version('pyarrow')} (expected"
    assert wrong in warning
    assert "pillow" not in warning
    fitting = f"packages: pillow {metadata.version('pillow')}, ray {metadata.version('ray')}"
    assert fitting in texts(findings, "ok")
    assert "pytest" not in str(findings)
    assert "pydantic" not in str(findings)


@pytest.mark.parametrize(
    ("asked", "version", "fits"),
    [
        ("torch==2.15.0", "2.15.0+cu128", True),
        ("torch==2.15.0", "2.15.1", False),
        ("fastapi<0.146", "0.146", False),
        ("faiss<2,>=1.15", "1.16rc1", True),
        ("numpy", "0.1", True),
    ],
)
def test_a_version_fits_by_the_whole_requirement(asked: str, version: str, fits: bool) -> None:
    assert doctor_machine._fits(Requirement(asked), version) is fits


def test_a_driver_without_a_device_is_a_warning(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a device")
    driver = tmp_path / "version"
    assert [finding.state for finding in doctor_machine.check_gpus(driver=driver)] == ["ok"]
    driver.write_text("driver")
    assert [finding.state for finding in doctor_machine.check_gpus(driver=driver)] == ["warning"]


@pytest.mark.parametrize(
    ("images", "state", "said"),
    [
        ([image()] * 9, "ok", "8 decoded: 8 ok;"),
        ([image(), None, b"<html>", image()], "warning", "4 decoded: 2 ok, 1 null_bytes, 1 not_an_image;"),
        ([b"", None], "error", "none is usable"),
        (pa.array([], pa.binary()), "warning", "has no rows"),
    ],
)
def test_images_of_the_first_shard_are_decoded(tmp_path: Path, images: list[object], state: str, said: str) -> None:
    shard(tmp_path / "a.parquet", photo=pa.array([1] * len(images), pa.int64()), webp=images)
    findings = list(doctor_data.check_data(str(tmp_path)))
    assert f"{len(images)} rows" in findings[0].text
    assert "photo (int64), webp (binary)" in findings[0].text
    assert "images in the column webp, no column key" in findings[1].text
    assert findings[2].state == state
    assert said in findings[2].text


def test_only_the_first_shard_is_read(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", jpg=[image()])
    (tmp_path / "b.parquet").write_text("no Parquet: whoever reads it fails")
    assert {finding.state for finding in doctor_data.check_data(str(tmp_path))} == {"ok"}


def test_shards_that_are_broken_are_a_warning_and_the_next_one_is_looked_at(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_text("no Parquet")
    good = shard(tmp_path / "c.parquet", jpg=[image()])
    findings = list(doctor_data.check_data(str(tmp_path)))
    [warning] = texts(findings, "warning")
    assert warning.startswith(f"data: {tmp_path.resolve()}/a.parquet and 1 more: not a whole Parquet file")
    assert texts(findings, "error") == []
    assert texts(findings, "ok")[0].startswith(f"data: {good.resolve()}: 1 rows")


def test_images_are_read_from_the_column_that_is_named(tmp_path: Path) -> None:
    data = str(shard(tmp_path / "a.parquet", jpg=[b"no image"], photo=[image()]))
    assert "1 not_an_image" in texts(list(doctor_data.check_data(data)), "error")[0]
    findings = list(doctor_data.check_data(data, image_column="photo"))
    assert "images in the column photo" in findings[1].text
    assert "1 decoded: 1 ok" in findings[2].text
    [error] = texts(list(doctor._storage_and_data(str(tmp_path / "root"), data, "foto")), "error")
    assert "foto" in error


def test_data_that_cannot_be_read_is_an_error_beside_the_other_findings(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no Parquet")
    findings = list(doctor._storage_and_data(str(tmp_path / "root"), str(tmp_path)))
    assert len(texts(findings, "error")) == 1
    assert "not a whole Parquet file" in texts(findings, "error")[0]
    assert texts(findings, "ok")[0].startswith("storage:")
    with pytest.raises(DataError, match="no shards found"):
        list(doctor_data.check_data(str(tmp_path / "nothing-*")))


def test_no_secret_of_the_environment_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_SESSION_TOKEN": CANARY,
        "PREFECT_API_KEY": CANARY,
        "PREFECT_API_AUTH_STRING": f"me:{CANARY}",
        "PREFECT_API_URL": f"http://me:{CANARY}@127.0.0.1:{free_port()}/api",
        "HF_TOKEN": CANARY,
        "RAY_AUTH_TOKEN": CANARY,
        "AWS_ENDPOINT_URL": f"http://me:{CANARY}@127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_REGION": "us-east-1",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor_storage, "PATIENCE_S", 0.0)
    findings = [
        *doctor.diagnose("s3://bucket/root", "s3://bucket/data", environment=secrets),
        *doctor.diagnose(str(tmp_path), environment=secrets),
    ]
    assert len(texts(findings, "error")) > 2
    assert CANARY not in str(findings)
