"""The result of a run as one JSON object: ``{stages, metrics, report}``."""

from typing import Any

from mlcd_core.errors import StageFailedError
from tasks.stage import StageOutcome


class RunFailedError(StageFailedError):
    """A stage of a run failed: the text is its error, ``summary`` what the run has made all the same."""

    def __init__(self, text: str, summary: dict[str, Any]) -> None:
        super().__init__(text)
        self.summary = summary


def run_summary(outcomes: list[StageOutcome]) -> dict[str, Any]:
    """Stage records in order, the evaluation scores by embedder, and the report (null until there is one)."""
    evaluate = next((o.manifest for o in outcomes if o.stage == "evaluate" and o.manifest), None)
    return {
        "stages": [outcome.record() for outcome in outcomes],
        "metrics": evaluate.metrics["scores"] if evaluate else {},
        "clusters": evaluate.metrics["clusters"] if evaluate else None,
        "report": None,
    }
