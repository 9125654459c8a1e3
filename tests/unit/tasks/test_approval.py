"""What a run that is to be approved must be, and what the form shows where there are no clusters yet."""

import pytest

from mlcd_core.errors import ConfigError
from mlcd_core.specs import STAGES
from mlcd_core.store import Manifest
from tasks.approval import approval_report, check_approval


def test_only_runs_of_a_deployment_can_be_approved() -> None:
    check_approval("", STAGES)
    with pytest.raises(ConfigError, match="belongs to no deployment"):
        check_approval("train", STAGES)


def test_the_stage_to_approve_is_one_that_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "some deployment")
    check_approval("train", STAGES)
    with pytest.raises(ConfigError, match="only embed, cluster would run"):
        check_approval("train", ("embed", "cluster"))
    with pytest.raises(ConfigError, match="did you mean train"):
        check_approval("trian", STAGES)


def test_the_form_shows_the_stages_so_far() -> None:
    assert approval_report("embed", "default", {}).strip() == "Shall **embed** of the run **default** run?"
    metrics = {"status": {"ok": 40, "not_an_image": 2}, "failed_units": []}
    embed = Manifest("embed", "s" * 64, "i" * 64, {}, 1, "d" * 64, 42, 40, (), metrics, {})
    text = approval_report("cluster", "default", {"embed": embed})
    assert "- **embed**: 42 rows, 2 not_an_image" in text
