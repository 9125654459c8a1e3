"""A batch whose loss is not finite: kept, so that its images can be looked at."""

from mlcd_core.errors import TrainingError
from mlcd_core.identity import canonical_json
from mlcd_core.store import Chain
from mlcd_core.train.batches import NO_ROW, Batch
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.step import NotFiniteError

NAMED_KEYS = 5


def with_batch_saved(fault: NotFiniteError, batch: Batch, *, step: int, chain: Chain, ranks: Ranks) -> TrainingError:
    """Save the keys and row numbers of the whole global batch beside the checkpoints; the error names that file.

    All ranks call it.
    """
    rows_and_keys = zip(batch.rows_B.tolist(), batch.keys, strict=True)
    filled = [(row, key) for row, key in rows_and_keys if row != NO_ROW]
    whole = [pair for rank_rows in ranks.gathered(filled) for pair in rank_rows]
    rows, keys = [row for row, _ in whole], [key for _, key in whole]
    where = None
    if ranks.rank == 0:
        record = {"step": step, "fault": fault.quantity, "rows": rows, "keys": keys}
        part = chain.put("faulty-batch", ".json", canonical_json(record).encode())
        where = chain.folder.files.uri(part.path)
    return TrainingError(
        f"at step {step} {fault}; nothing was updated. The batch begins with {', '.join(keys[:NAMED_KEYS])}, all "
        f"{len(keys)} keys are in {ranks.from_first(where)}; lower train.learning_rate, train.center_learning_rate or "
        "train.scale, and look at these images"
    )
