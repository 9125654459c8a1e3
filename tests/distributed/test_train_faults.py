"""A loss that is not finite on two ranks: both end, and one file names the whole global batch."""

import json
from functools import partial
from pathlib import Path

from mlcd_core.errors import TrainingError
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import train
from mlcd_core.train.batches import BatchReader
from mlcd_core.train.ranks import Ranks
from tests.distributed.harness import run_ranks
from tests.unit.train.tiny import NUM_CLASSES, open_tiny_data, tiny_chain, tiny_spec, write_tiny_data

SPEC = tiny_spec(learning_rate=1e30, warmup_share=0, epochs=1)


def error_of_a_run(group, folder):
    try:
        train(
            SPEC,
            open_tiny_data(Path(folder)),
            num_classes=NUM_CLASSES,
            chain=tiny_chain(Path(folder) / "run", SPEC),
            group=group,
            runtime=TrainRuntime(device="cpu"),
        )
    except TrainingError as error:
        return str(error)
    return "no error"


def test_both_ranks_name_the_file_that_holds_the_whole_batch(tmp_path):
    data = write_tiny_data(tmp_path)
    first, second = run_ranks(partial(error_of_a_run, folder=tmp_path), 2, tmp_path)
    assert first == second
    [path] = (tmp_path / "run").glob("train/*/data/faulty-batch-*.json")
    assert str(path) in first
    saved = json.loads(path.read_text())
    with BatchReader(data, SPEC, Ranks(), num_classes=NUM_CLASSES) as reader:
        batch = reader.batch(saved["step"])
    pairs = sorted(zip(batch.rows_B.tolist(), batch.keys, strict=True))
    assert sorted(zip(saved["rows"], saved["keys"], strict=True)) == pairs
