"""What the UI shows of a whole run: a row per stage, and arrows from what each stage reads."""

from typing import Any

from mlcd_core.store import Manifest
from tasks.artifacts import run_markdown, stage_markdown

STAGES = ("embed", "cluster", "label", "train", "evaluate")


def stage(name: str, result: str = "cached", number: int = 1, **values: Any) -> dict[str, Any]:
    made = result in ("cached", "ran")
    empty = {"units_run": 0, "seconds": 0.25, "rows": 40 if made else None, "note": "", "error": ""}
    digest = f"{STAGES.index(name)}{number}" * 32 if made else None
    return {"round": number, "stage": name, "result": result, "manifest_digest": digest, **empty, **values}


def test_every_stage_has_a_row_with_its_result_digest_and_error() -> None:
    stages = [stage("embed"), stage("cluster", "failed", error="TooFewRowsError: 12 rows")]
    text = run_markdown([*stages, *(stage(name, "skipped") for name in STAGES[2:])])
    assert "| embed | cached | 0 | 0.2 | 40 | 010101010101 |  |" in text
    assert "| cluster | failed | 0 | 0.2 | - | - | TooFewRowsError: 12 rows |" in text
    assert text.count("| skipped |") == 3


def test_a_text_cannot_break_the_table() -> None:
    text = run_markdown([stage("embed", "failed", error="a | b\nc")])
    assert "| a \\| b c |" in text


def test_the_lineage_has_an_arrow_for_all_that_is_read() -> None:
    text = run_markdown([stage(name) for name in STAGES])
    expected = {"embed1 --> cluster1", "embed1 --> label1", "cluster1 --> label1", "label1 --> train1"}
    expected |= {f"{name}1 --> evaluate1" for name in STAGES[:4]}
    assert {line.strip() for line in text.splitlines() if "-->" in line} == expected


def test_a_later_round_embeds_with_the_tower_of_the_one_before() -> None:
    text = run_markdown([stage(name, number=number) for number in (1, 2) for name in STAGES])
    assert "train1 --> embed2" in text
    assert "| round | stage |" in text


def test_a_stage_whose_parts_hold_no_rows_counts_none() -> None:
    evaluate = Manifest("evaluate", "s", "i", {}, 1, "d", 0, 0, (), {"scores": {}}, {})
    text = stage_markdown({"result": "ran", "units_run": 1, "seconds": 1.0, "uri": ""}, evaluate)
    assert "| rows |" not in text
