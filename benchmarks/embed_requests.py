"""Requests to S3 by the embed stage, with data and root there: counted at a proxy before the S3 server of the tests."""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from embed_pipeline import mlcd_run
from embed_race import first_rows

sys.path.insert(0, str(Path(__file__).parents[1]))  # the server and the proxy belong to the tests

from tests.s3.proxy import FaultProxy, Request
from tests.servers import make_bucket, s3_environment, s3_server

GOAL = 4
BUCKET = "bench"
GROUP_ROWS = 100
PLANNING, UNITS, SEALING = "before the units", "the units", "after them"
SHARDS, PARTS, RECEIPTS, REST = "shards", "embedding parts", "receipts", "spec, manifest, record of the run, listings"


@dataclass(frozen=True)
class Case:
    """Shards of ``shard_rows`` rows in row groups of 100, cut into units of at most ``unit_rows``."""

    num_shards: int
    shard_rows: int
    unit_rows: int

    @property
    def num_units(self) -> int:
        """Units of all shards."""
        return self.num_shards * -(-self.shard_rows // self.unit_rows)


CASES = (Case(2, 10_000, 10_000), Case(2, 10_000, 1_000), Case(40, 100, 100))


def requests_section(images: str, folder: Path) -> list[str]:
    """Every case, and what the page says of it."""
    lines = [
        "## Requests to S3",
        "",
        "Data and root on the S3 server of the tests, behind a proxy that counts; the whole of",
        "`mlcd run --until embed`, planning included, and the same command again. A unit needs two GETs (footer and",
        "rows; more where its rows have over 64 MiB), a PUT of its part and one of its receipt. The images are small;",
        "the requests of big ones are the same up to that size.",
        "",
    ]
    for case in CASES:
        first, again = requests_of(case, images, folder)
        lines += case_lines(case, by_phase(first), num_again=len(again))
    return lines


def requests_of(case: Case, images: str, folder: Path) -> tuple[list[Request], list[Request]]:
    """The requests of a run on a new root, and of the same command after it."""
    settings = {"device": "cpu", "workers": 1, "threads": 2, "rows_per_unit": case.unit_rows}
    run_folder = Path(tempfile.mkdtemp(prefix="requests-", dir=folder))
    with s3_server() as server:
        make_bucket(server, BUCKET)
        upload(case, images, server)
        with FaultProxy(server) as proxy:
            found = []
            for _ in range(2):
                proxy.inject()
                environment = {**s3_environment(proxy.endpoint), "XDG_CACHE_HOME": str(run_folder)}
                mlcd_run(f"s3://{BUCKET}/data", f"s3://{BUCKET}/root", settings, run_folder, environment)
                found.append(list(proxy.requests))
    return found[0], found[1]


def upload(case: Case, images: str, server: str) -> None:
    """Put the shards into the bucket, past the proxy."""
    store = s3fs.S3FileSystem(endpoint_url=server, key="tests", secret="nothing-secret")
    rows = first_rows(images, case.num_shards * case.shard_rows)
    for shard in range(case.num_shards):
        sink = pa.BufferOutputStream()
        pq.write_table(rows.slice(shard * case.shard_rows, case.shard_rows), sink, row_group_size=GROUP_ROWS)
        store.pipe_file(f"{BUCKET}/data/train-{shard:05d}.parquet", sink.getvalue().to_pybytes())


def by_phase(requests: Sequence[Request]) -> dict[str, list[Request]]:
    """Before the stage's spec is written, until the last receipt is, and after."""
    puts = [(number, object_of(request)) for number, request in enumerate(requests) if request.method == "PUT"]
    spec = next(number for number, _ in puts if requests[number].key.endswith("/spec.json"))
    last = max(number for number, name in puts if name == RECEIPTS)
    return {PLANNING: requests[:spec], UNITS: requests[spec : last + 1], SEALING: requests[last + 1 :]}


def object_of(request: Request) -> str:
    """The kind of object that a request is for."""
    if request.method == "LIST":
        return REST
    if request.key.startswith("data/"):
        return SHARDS
    folders: Sequence[str] = request.key.split("/")
    return PARTS if "data" in folders else RECEIPTS if "units" in folders else REST


def case_lines(case: Case, phases: dict[str, list[Request]], *, num_again: int) -> list[str]:
    """A table of one case."""
    of_unit = sum(object_of(request) != REST for found in phases.values() for request in found) / case.num_units
    running = sum(object_of(request) != REST for request in phases[UNITS]) / case.num_units
    verdict = "met" if of_unit <= GOAL else "missed"
    return [
        f"### {case.num_units} units of {case.unit_rows:,} rows, {case.num_shards} shards of {case.shard_rows:,}",
        "",
        f"| object | {' | '.join(phases)} | per unit |",
        f"|---|{'---|' * len(phases)}---|",
        *(object_row(name, list(phases.values()), case.num_units) for name in (SHARDS, PARTS, RECEIPTS, REST)),
        "",
        f"- Of shards, parts and receipts: {of_unit:.2f} per unit, {running:.2f} of them while the units run; goal at "
        f"most {GOAL} in all: {verdict}.",
        f"- The same command again: {num_again} requests in all.",
        "",
    ]


def object_row(name: str, phases: Sequence[Sequence[Request]], num_units: int) -> str:
    """The requests for one kind of object, in each phase by method."""
    found = [Counter(request.method for request in phase if object_of(request) == name) for phase in phases]
    cells = [", ".join(f"{count} {method}" for method, count in sorted(methods.items())) for methods in found]
    return f"| {name} | {' | '.join(cells)} | {sum(methods.total() for methods in found) / num_units:.2f} |"
