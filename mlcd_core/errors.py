"""The errors people see. Each says what failed, what was found, what was expected and how to fix it.

MlcdError
+-- ConfigError            a key, a preset or a value that cannot be meant
+-- DataError              input shards that are missing, unreadable or without images
|   +-- LabelDataError     label columns or label files that do not fit
|   +-- ShardChangedError  a shard that is gone or was replaced since it was found
+-- TooFewRowsError        more centroids asked for than the rows can carry
+-- StoreError             storage that cannot be read or written ("cannot tell", never "absent")
|   +-- CorruptRecordError a receipt, manifest or part that is not what its record says
+-- LeaseHeldError         another run makes the same, and this one may not wait for it any longer
|   +-- LeaseLostError     another run took over, because this one showed no sign of life
+-- UpstreamMissingError   a stage that was not selected and is not committed either
+-- RejectedError          a stage that was to be approved first, and was not
+-- StageFailedError       units that did not add up, or work that failed on a worker
|   +-- WorkerLostError    a worker that others waited for died or hangs
+-- TrainingError          NaN loss, labels out of range, a world size that does not fit
+-- TrainingStopped        training that was asked to end, after it saved
"""


class MlcdError(Exception):
    """Base of all errors meant for people; ``code`` is stable, the text holds what, got, expected, fix."""

    code = "mlcd"


class ConfigError(MlcdError):
    """A key, preset or value that cannot be meant."""

    code = "config"


class DataError(MlcdError):
    """Input shards that are missing, unreadable or without images."""

    code = "data"


class LabelDataError(DataError):
    """A label column or label file that does not fit its data."""

    code = "label-data"


class ShardChangedError(DataError):
    """A shard that is gone or was replaced since it was found."""

    code = "shard-changed"


class TooFewRowsError(MlcdError):
    """More centroids asked for than the usable rows can carry."""

    code = "too-few-rows"


class StoreError(MlcdError):
    """Storage that cannot be read or written. Never raised for something that is merely absent."""

    code = "store"


class CorruptRecordError(StoreError):
    """A receipt, manifest or part whose content is not what its record says."""

    code = "corrupt"


class LeaseHeldError(MlcdError):
    """Another run makes the same, and this one may not wait for it any longer."""

    code = "lease-held"


class LeaseLostError(LeaseHeldError):
    """Another run took over what this one was making, because it showed no sign of life for long."""

    code = "lease-lost"


class UpstreamMissingError(MlcdError):
    """A stage that was not selected to run and is not committed either."""

    code = "upstream-missing"


class RejectedError(MlcdError):
    """A stage that was to be approved before it runs was not."""

    code = "rejected"


class StageFailedError(MlcdError):
    """Rows that do not add up, or work that failed on a worker."""

    code = "stage-failed"


class WorkerLostError(StageFailedError):
    """A worker that others waited for died or hangs."""

    code = "worker-lost"


class TrainingError(MlcdError):
    """A loss that is not finite, labels out of range, or a world size that does not fit."""

    code = "training"


class TrainingStopped(MlcdError):  # noqa: N818 - asked for, nothing went wrong
    """Training was asked to end; its state is saved and a rerun goes on from there."""

    code = "training-stopped"
