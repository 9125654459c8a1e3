"""The Ray Data side of a unit, without Ray: what travels back is a small status, also for errors."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.events import silent
from mlcd_core.store import UnitTask
from mlcd_core.tables import label_schema
from tasks.evaluate import _label_matrix
from tasks.units import _UnitCaller, run_units

BATCH = {"index": np.array([3]), "unit": np.array(["u" * 64]), "attempt": np.array([1]), "reads": np.array([{"n": 5}])}


class Counter:
    """A unit worker that says what it read."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, task: UnitTask, reads: dict[str, Any]) -> int:
        assert task == UnitTask(3, "u" * 64, 1)
        return self.factor * int(reads["n"])


class CannotStart:
    """A unit worker whose settings are wrong."""

    def __init__(self) -> None:
        raise ConfigError("set embed.image_size=224")


class CannotRead:
    """A unit worker whose shard is damaged."""

    def __call__(self, task: UnitTask, reads: dict[str, Any]) -> int:
        raise DataError("row group 1 cannot be read")


def test_a_unit_returns_its_rows() -> None:
    assert _UnitCaller(Counter, {"factor": 2})(BATCH) == {"rows": [10], "kind": [""], "error": [""]}


@pytest.mark.parametrize(
    ("worker", "kind", "text"),
    [(CannotStart, "ConfigError", "set embed.image_size=224"), (CannotRead, "DataError", "row group 1 cannot be read")],
)
def test_errors_for_people_travel_as_text_also_those_of_the_start(worker: type, kind: str, text: str) -> None:
    assert _UnitCaller(worker, {})(BATCH) == {"rows": [0], "kind": [kind], "error": [text]}


def test_nothing_pending_needs_no_ray() -> None:
    run_units(Counter, {"factor": 1}, [], [], workers=2, report=silent)


def test_labels_of_an_empty_part_keep_their_width() -> None:
    assert _label_matrix(pa.Table.from_pylist([], schema=label_schema(5))).shape == (0, 5)
