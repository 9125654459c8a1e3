"""What ``mlcd plan`` says about bytes, hours and money, as told by stages that were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.spelling import duration_text, size_text

NOT_MEASURED = (
    "cost unknown of {}: nothing like it has run under this root; `mlcd plan --probe` measures it on a sample"
)


def costs_text(plans: Sequence[Mapping[str, Any]]) -> str:
    """One line for each stage that is to be run, their sums, and which stages nothing is known of.

    Of rounds after the first nothing is known.
    """
    known = [plan for plan in plans if plan["cost"]]
    unknown = [plan["stage"] for plan in plans if not plan["cost"] and plan["plan"] != "hit" and plan["round"] == 1]
    lines = [f"  {plan['stage']:<10}{_cost_text(plan['cost'])}, as {plan['cost']['like']}" for plan in known]
    if known:
        names = ("bytes", "seconds", "gpu_hours", "price")
        total = {name: _sum(plan["cost"][name] for plan in known) for name in names}
        scope = "of round 1" if plans[-1]["round"] > 1 else "of what is to be run"
        lines = [f"cost {scope}, by rule of three:", *lines, f"  {'in all':<10}{_cost_text(total)}"]
    if unknown:
        lines.append(NOT_MEASURED.format(", ".join(unknown)))
    return "\n".join(lines)


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _cost_text(cost: Mapping[str, Any]) -> str:
    words = f"{size_text(cost['bytes']):>8} {duration_text(cost['seconds']):>9}"
    if cost["gpu_hours"]:
        words += f", {cost['gpu_hours']:,.3g} GPU-hours"
    return words if cost["price"] is None else f"{words}, {cost['price']:,.2f} to pay"
