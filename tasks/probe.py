"""A probe: all stages on the first images of a run, in a folder that is dropped, to tell what the whole would cost."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.config import most_workers
from mlcd_core.dataset import Shard, ShardReader
from mlcd_core.errors import ConfigError
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Files, Manifest
from tasks.ray_session import RaySession
from tasks.run import Run, open_run
from tasks.stage import Manner, run_stage
from tasks.work import stage_work

# the last unit is a short one: what a file costs without rows is seen only beside another
ROWS, TEST_ROWS, UNIT_ROWS = 1056, 512, 128
ITERATIONS = 3
# enough steps to see their speed, but not of batches of thousands
TRAIN_IMAGES, FEWEST_STEPS = 6144, 6


def probe(run: Run, folder: Path, *, num_centroids: int) -> Files:
    """Run every stage on the first rows of the data; the files of the root it made under ``folder``.

    num_centroids: of the whole run; the probe takes fewer where it has too few rows. Raises ConfigError where a stage
    begins from something under the run's root, and what the stages raise.
    """
    embed, train = run.config.embed, run.config.train
    if embed.embedder == "tower" or train.start_from:
        raise ConfigError(
            "a probe runs in a folder of its own, and embed.tower or train.start_from names something of this root; "
            "plan without --probe: the stages under this root have measured themselves"
        )
    data, test = folder / "data.parquet", folder / "test.parquet"
    rows = _write_sample(run, run.shards, data, ROWS)
    if run.eval_shards:
        _write_sample(run, run.eval_shards, test, TEST_ROWS)
    steps_of_epoch = math.ceil(rows / train.batch_size)
    steps = max(FEWEST_STEPS, TRAIN_IMAGES // train.batch_size)
    overrides = {
        **run.request.overrides,
        "embed.rows_per_unit": UNIT_ROWS,
        "cluster.num_centroids": min(num_centroids, rows // 4),
        "cluster.iterations": ITERATIONS,
        "train.epochs": math.ceil(steps / steps_of_epoch),
        "train.log_steps": math.ceil(steps / 12),
        "train.log_folder": "",
    }
    request = replace(
        run.request,
        root=str(folder / "root"),
        data=str(data),
        eval_data=str(test) if run.eval_shards else "",
        label_column=run.label_column,
        overrides=overrides,
        pin={},
    )
    sample = open_run(request)
    committed: dict[StageName, Manifest] = {}
    with RaySession(most_workers=most_workers(sample.config)) as session:
        for stage in STAGES:
            work = stage_work(stage, sample, committed)
            manifest = run_stage(work, sample, session, Manner(), run_name="a probe").manifest
            assert manifest is not None, f"{stage} ended without an error and without a manifest"
            committed[stage] = manifest
    return sample.files


def _write_sample(run: Run, shards: Sequence[Shard], path: Path, most_rows: int) -> int:
    """Write the first rows of the shards that can be read; returns how many."""
    embed = run.config.embed
    captions = embed.caption_column if embed.feature == "image_text_mean" else ""
    image = "jpg" if embed.image_column == "auto" else embed.image_column
    columns: dict[str, list[object]] = {"key": [], image: []}
    columns |= {name: [] for name in (run.label_column, captions) if name}
    for shard in shards:
        if shard.error or len(columns["key"]) >= most_rows:
            continue
        reader = ShardReader(
            shard, image_column=embed.image_column, label_column=run.label_column, caption_column=captions
        )
        for rows in reader:
            columns["key"] += rows.keys
            columns[image] += rows.images
            if run.label_column:
                columns[run.label_column] += rows.labels or []
            if captions:
                columns[captions] += rows.captions or []
            if len(columns["key"]) >= most_rows:
                break
    table = pa.table({name: values[:most_rows] for name, values in columns.items()})
    pq.write_table(table, path, row_group_size=UNIT_ROWS)
    return int(table.num_rows)
