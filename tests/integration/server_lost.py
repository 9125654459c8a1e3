"""The Prefect server is killed while a run is at work: what is committed stays, and the next run makes the rest.

infra/dev day
"""

import os
import random
import re
import subprocess
import time
from pathlib import Path

import psutil

from tests.integration.harness import (
    Mlcd,
    prefect_process,
    tiny_settings,
    wait_for_first_receipt,
    write_scenes,
)

ENDS_S = 300


def test_a_run_outlives_its_server_or_resumes(tmp_path: Path, mlcd: Mlcd) -> None:
    write_scenes(tmp_path / "data", "train", shards=4)
    root = tmp_path / "root"
    words = ["run", "--data", str(tmp_path / "data"), "--root", str(root), "--until", "label", *tiny_settings()]
    with prefect_process(tmp_path, os.environ) as (api, server), (tmp_path / "said").open("w") as said:
        begun = Mlcd(api, {"PREFECT_CLIENT_MAX_RETRIES": "2"})
        child = subprocess.Popen(
            begun.command(words), stdout=said, stderr=said, env=begun.environment(), start_new_session=True
        )
        processes = wait_for_first_receipt(child, root, random.choice(["embed", "cluster"]))
        time.sleep(random.uniform(0, 1))
        server.kill()
        code = child.wait(timeout=ENDS_S)
    text = (tmp_path / "said").read_text()
    # it has gone on without the server; only that it has ended could not be told
    assert code == 0 or (code == 1 and "the Prefect server does not answer any more" in text), text[-3000:]
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    embedded = len(list(root.glob("embed/*/units/*.json")))
    assert embedded
    done = mlcd(*words)
    assert done.code == 0, done.stderr
    # of embed only what was missing is made: nothing, or so many units
    assert re.findall(r"embed unit: done \d+, total (\d+)", done.stderr)[-1:] == [str(4 - embedded)] * (embedded < 4)
    stages = ("embed", "cluster", "label")
    assert {stage: len(list(root.glob(f"{stage}/*/manifests/*.json"))) for stage in stages} == dict.fromkeys(stages, 1)
