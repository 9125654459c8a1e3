"""The demo's own data: multi-digit scenes in Parquet shards under the root, made once, shard by shard."""

from mlcd_core.images.digit_scenes import Split, scene_parquet_bytes
from mlcd_core.store import Files

DEMO = "demo"
SEED = 0
NUM_SHARDS: dict[Split, int] = {"train": 8, "test": 2}
ROWS_PER_SHARD: dict[Split, int] = {"train": 750, "test": 500}


def compose_demo(files: Files) -> None:
    """Write the train and test shards that are not there yet; 6,000 and 1,000 scenes."""
    files.sweep(DEMO)
    present = {info.path for info in files.list(DEMO)}
    for split, num_shards in NUM_SHARDS.items():
        for shard in range(num_shards):
            path = f"{DEMO}/{split}-{shard:05d}.parquet"
            if path not in present:
                files.put(path, scene_parquet_bytes(split, shard, ROWS_PER_SHARD[split], SEED))
