"""What a person sees of an embedding: rows by status, and every unit that failed by its name."""

from typing import Any

import pytest

from mlcd_core.store import Manifest
from tasks.artifacts import stage_markdown
from tasks.tables import failed_units_table, stage_note

RECORD = {"result": "ran", "units_run": 3, "seconds": 1.0, "uri": "/data/mlcd/embed/abc"}


def embedded(status: dict[str, int], failed: list[dict[str, Any]], **metrics: Any) -> Manifest:
    rows = sum(status.values())
    return Manifest(
        stage="embed",
        spec="s" * 64,
        input="i" * 64,
        inputs={},
        attempt=1,
        digest="d" * 64,
        rows=rows,
        usable=status.get("ok", 0),
        parts=(),
        metrics={"status": status, "failed_units": failed, **metrics},
        provenance={"devices": ["cuda"]},
    )


def failed(count: int, status: str = "worker_died") -> list[dict[str, Any]]:
    return [{"source": f"s3://b/{number}.parquet", "rows": 1_000, "status": status} for number in range(count)]


@pytest.mark.parametrize(
    ("status", "units", "note"),
    [
        ({"ok": 10}, [], "every row usable"),
        ({"ok": 7, "decode_error": 3}, [], "3 decode_error"),
        (
            {"ok": 7, "decode_error": 3, "worker_died": 1_000},
            failed(1),
            "3 decode_error, 1 unit worker_died: s3://b/0.parquet",
        ),
        (
            {"ok": 7, "unreadable": 1_000, "worker_died": 2_000},
            [*failed(2), *failed(1, "unreadable")],
            "1 unit unreadable: s3://b/0.parquet, 2 units worker_died: s3://b/0.parquet, s3://b/1.parquet",
        ),
        (
            {"ok": 7, "worker_died": 9_000},
            failed(9),
            "9 units worker_died: s3://b/0.parquet, s3://b/1.parquet, s3://b/2.parquet, ...",
        ),
    ],
)
def test_the_note_counts_rows_by_reason_and_names_failed_units(
    status: dict[str, int], units: list[dict[str, Any]], note: str
) -> None:
    assert stage_note(embedded(status, units)) == note


def test_the_artifact_says_on_what_it_ran_and_lists_failed_units() -> None:
    psnr = {"images": 12, "mean_db": 53.21, "worst_db": 50.4}
    text = stage_markdown(RECORD, embedded({"ok": 7, "worker_died": 1_000}, failed(1), fast_decode_psnr=psnr))
    assert "| embedded on | cuda |" in text
    assert "| fast decoding against exact | PSNR 53.2 dB, worst 50.4 dB, of 12 images |" in text
    assert "| worker_died | s3://b/0.parquet | 1,000 |" in text


def test_the_artifact_without_failed_units_has_no_table_of_them() -> None:
    assert "failed unit" not in stage_markdown(RECORD, embedded({"ok": 7}, []))


def test_of_many_failed_units_the_first_are_listed() -> None:
    _, rows = failed_units_table({"failed_units": failed(25)})
    assert len(rows) == 21
    assert rows[-1] == ("...", "5 more", "")
