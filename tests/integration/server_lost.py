"""The Prefect server is killed while a run is at work: what is committed stays, and the next run makes the rest.

infra/dev day
"""

import os
import random
import time
from pathlib import Path

import psutil

from tests.integration.harness import (
    Mlcd,
    prefect_process,
    tiny_settings,
    wait_for_first_receipt,
    write_id_of,
    write_scenes,
)

ENDS_S = 300


def test_a_run_outlives_its_server_or_resumes(tmp_path: Path, mlcd: Mlcd) -> None:
    write_scenes(tmp_path / "data", "train", shards=4)
    root = tmp_path / "root"
    words = ["run", "--data", str(tmp_path / "data"), "--root", str(root), "--until", "label", *tiny_settings()]
    with prefect_process(tmp_path, os.environ) as (api, server):
        child = Mlcd(api, {"PREFECT_CLIENT_MAX_RETRIES": "2"}).start(*words)
        processes = wait_for_first_receipt(child, root, random.choice(["embed", "cluster"]))
        time.sleep(random.uniform(0, 1))
        server.kill()
        code = child.wait(timeout=ENDS_S)
    assert code in {0, 1}
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    committed = {path: write_id_of(path) for path in root.glob("*/*/units/*.json")}
    assert committed
    done = mlcd(*words)
    assert done.code == 0, done.stderr
    assert {path: write_id_of(path) for path in committed} == committed
    stages = ("embed", "cluster", "label")
    assert {stage: len(list(root.glob(f"{stage}/*/manifests/*.json"))) for stage in stages} == dict.fromkeys(stages, 1)
