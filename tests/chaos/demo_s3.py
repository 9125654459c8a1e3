"""The demo with data and root on S3, and again with faults injected: python -m tests.chaos.demo_s3 [--folder D]

``mlcd demo --root s3://...`` composes the scenes into the bucket and runs all stages; it must end well through a store
that answers, and through one that is busy, loses replies, cuts bodies, resets connections and is silent for 20 seconds.
Both must come to the same digests, and faults must have fallen: requests that were refused, and some that got no
answer. Prints one JSON object; exit code 1 on any failure. Takes some minutes.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.s3_world import World, address, world
from tests.integration.s3_store import RequestLog, proxy
from tests.s3.proxy import NO_ANSWER

BUSY = 503
FAULTS = [
    {"kind": "silence", "method": "PUT", "nth": [7], "seconds": 20},
    {"kind": "silence", "method": "GET", "nth": [60], "seconds": 20},
    {"kind": "503", "probability": 0.05},
    {"kind": "409", "method": "PUT", "key": "*/units/*", "probability": 0.1},
    {"kind": "lost reply", "method": "PUT", "probability": 0.05},
    {"kind": "cut body", "method": "GET", "probability": 0.03},
    {"kind": "reset", "probability": 0.02},
]


def demo(here: World, root: str) -> dict[str, Any]:
    """Run the demo to its end on a root in the bucket; exit code, seconds, and digest of each stage."""
    started = time.monotonic()
    family = here.start(["demo", "--root", address(root), "--json"], root)
    code = family.child.wait()
    ended: dict[str, Any] = {"code": code, "seconds": round(time.monotonic() - started, 1)}
    if code == 0:
        summary = json.loads((here.folder / f"{root}.out").read_text().splitlines()[-1])
        ended["digests"] = {stage["stage"]: stage["manifest_digest"] for stage in summary["stages"]}
        ended["metrics"] = summary["metrics"]
    else:
        print((here.folder / f"{root}.err").read_text()[-3000:], file=sys.stderr)
    return ended


def faults_fell(statuses: Mapping[int, int]) -> bool:
    """Whether the faulty run was one, by its requests per status: an experiment without faults shows nothing."""
    return statuses.get(BUSY, 0) > 0 and statuses.get(NO_ANSWER, 0) > 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo twice and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.demo_s3", description="the demo on S3, with faults")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--folder", type=Path, help="logs and caches; kept (default: a temporary folder, removed)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlcd-chaos-"))
    with world(folder) as here:
        plain = demo(here, "plain")
        log = folder / "faults.jsonl"
        with proxy(here.store.endpoint, log, FAULTS, seed=options.seed) as endpoint:
            here.environment["AWS_ENDPOINT_URL"] = endpoint
            faulty = demo(here, "faulty")
        statuses = Counter(request.status for request in RequestLog(log).read())
    ended_well = plain["code"] == faulty["code"] == 0 and plain["digests"] == faulty["digests"]
    passed = ended_well and faults_fell(statuses)
    report = {"passed": passed, "plain": plain, "faulty": faulty}
    print(json.dumps({**report, "statuses_with_faults": dict(sorted(statuses.items()))}))
    if not options.folder:
        shutil.rmtree(folder)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
