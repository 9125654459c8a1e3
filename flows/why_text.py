"""What ``mlcd why`` says of each stage, and what ``mlcd plan`` says in a few words."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 2  # changes in a line of the plan


def why_text(stages: Sequence[Mapping[str, Any]]) -> str:
    """A paragraph per stage: what would be made, and every difference from the nearest result."""
    rounds = stages[-1]["round"] if stages else 1
    return "\n".join(_paragraph(plan, f"round {plan['round']}, " if rounds > 1 else "") for plan in stages)


def why_words(plan: Mapping[str, Any]) -> str:
    """The first differences, for a line of a table."""
    changes = [_change_text(change) for change in plan["changes"]]
    more = [f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
    return ", ".join([*changes[:SHOWN], *more])


def _paragraph(plan: Mapping[str, Any], prefix: str) -> str:
    head = f"{prefix}{plan['stage']}:"
    if plan["plan"] == "hit":
        return f"{head} committed, nothing to do" + (f" ({plan['note']})" if plan["note"] else "")
    if plan["plan"] == "waits":
        return f"{head} {plan['note']}"
    todo = f"{plan['units_missing']:,} of {plan['units_total']:,} units to make"
    if not plan["nearest"]:
        return f"{head} {todo}; no result of this stage is under this root yet"
    if not plan["changes"]:
        why = "but files of it are gone, or units that failed were made since"
        return f"{head} {todo}; it was committed at {plan['nearest']}, {why}"
    changes = "".join(f"\n  {_change_text(change)}" for change in plan["changes"])
    return f"{head} {todo}; the nearest result is {plan['nearest']}, and different is{changes}"


def _change_text(change: Mapping[str, Any]) -> str:
    return f"{change['what']} {_spelled(change['was'])} -> {_spelled(change['now'])}"


def _spelled(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)
