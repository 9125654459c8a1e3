"""The error budget: which rows count, when it is certainly spent, and what the error says."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcd_core.error_budget import ErrorBudget, RowLedger, ShardRows
from mlcd_core.errors import StageFailedError

BUDGET = ErrorBudget(max_bad_share=0.05, max_bad_share_shard=0.2)
GOOD_100 = {"ok": 100}


def ledger(*rows: int | None, budget: ErrorBudget = BUDGET) -> RowLedger:
    """Of shards named 0, 1, 2, ..."""
    return RowLedger([ShardRows(str(number), known) for number, known in enumerate(rows)], budget)


def test_a_share_that_is_accepted_exactly_is_accepted() -> None:
    rows = ledger(100, 100)
    rows.add(0, {"ok": 90, "truncated": 10}, failed=False)
    rows.add(1, GOOD_100, failed=False)
    rows.check()


def test_one_row_more_is_too_much_and_the_error_says_what_to_do() -> None:
    rows = ledger(100, 100)
    rows.add(0, {"ok": 89, "truncated": 8, "null_bytes": 3}, failed=False)
    with pytest.raises(StageFailedError) as raised:
        rows.check()
    text = str(raised.value)
    assert "11 of 200 rows (5.5%) have no embedding; accepted are 5.0%" in text
    assert "0 (8 truncated, 3 null_bytes of 100)" in text
    for fix in ("mlcd inspect shard", "mlcd retry-failed", "--set embed.max_bad_share=0.06"):
        assert fix in text


def test_one_bad_shard_among_many_good_ones_is_found() -> None:
    rows = ledger(*[100] * 10)
    rows.add(3, {"ok": 79, "truncated": 21}, failed=False)
    with pytest.raises(StageFailedError, match=r"in 1 of 10 shards.*: 3 \(21 truncated.*max_bad_share_shard=0.21"):
        rows.check()


def test_the_units_of_a_shard_are_counted_together() -> None:
    rows = ledger(*[100] * 10)
    rows.add(3, {"ok": 30, "truncated": 20}, failed=False)
    rows.check()
    rows.add(3, {"ok": 49, "truncated": 1}, failed=False)
    with pytest.raises(StageFailedError, match="in 1 of 10 shards"):
        rows.check()


def test_rows_of_a_failed_unit_count_of_all_rows_but_not_of_those_that_were_read() -> None:
    rows = ledger(*[100] * 10)
    rows.add(3, {"worker_died": 50}, failed=True)
    rows.check()
    rows.add(3, {"ok": 39, "truncated": 11}, failed=False)  # 22 % of the 50 that were read
    with pytest.raises(StageFailedError, match="61 of 1,000 rows"):
        rows.check()
    generous = ledger(*[100] * 10, budget=ErrorBudget(1, 0.2))
    generous.add(3, {"worker_died": 50}, failed=True)
    generous.add(3, {"ok": 39, "truncated": 11}, failed=False)
    with pytest.raises(StageFailedError, match="in 1 of 10 shards"):
        generous.check()


def test_an_unreadable_shard_counts_as_the_mean_of_the_others_before_anything_is_read() -> None:
    ledger(*[100] * 19, None).check()
    rows = ledger(*[100] * 18, None)
    with pytest.raises(StageFailedError, match=r"100 of 1,900 rows \(5\.3%\).*: 18 \(unreadable\)"):
        rows.check()


def test_nothing_but_unreadable_shards_is_over_any_budget_below_all() -> None:
    with pytest.raises(StageFailedError, match=r"100\.0%"):
        ledger(None, None, budget=ErrorBudget(0.99, 1)).check()
    ledger(None, budget=ErrorBudget(1, 1)).check()


def test_no_rows_spend_no_budget() -> None:
    ledger(0, budget=ErrorBudget(0, 0)).check()


def test_of_many_bad_shards_the_worst_are_named() -> None:
    rows = ledger(*[100] * 9)
    for shard in range(8):
        rows.add(shard, {"ok": 90 - shard, "truncated": 10 + shard}, failed=False)
    with pytest.raises(StageFailedError, match=r"worst shards: 7 \(.*, 6 \(.*, 5 \(.*, 4 \(.*, 3 \(.* and 3 more"):
        rows.check()


Unit = tuple[int, Mapping[str, int], bool]
a_unit = st.tuples(
    st.integers(0, 3),
    st.fixed_dictionaries({"ok": st.integers(0, 20), "truncated": st.integers(0, 20)}),
    st.booleans(),
)


@given(st.lists(a_unit, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_it_says_over_at_the_end_whenever_it_says_so_on_the_way(
    units: list[Unit], max_share: float, max_share_shard: float
) -> None:
    """And at the end it is what counting all rows at once says."""
    units = [(shard, {"worker_died": sum(c.values())} if failed else c, failed) for shard, c, failed in units]
    totals = [sum(sum(c.values()) for s, c, _ in units if s == shard) for shard in range(4)]
    rows = ledger(*totals, budget=ErrorBudget(max_share, max_share_shard))
    over = []
    for shard, counts, failed in units:
        rows.add(shard, counts, failed=failed)
        over.append(is_over(rows))
    assert over == sorted(over)
    if units:
        bad = sum(sum(c.values()) - c.get("ok", 0) for _, c, _ in units)
        share = bad / sum(totals) if sum(totals) else 0
        shares = []
        for shard in range(4):
            read = [c for s, c, failed in units if s == shard and not failed]
            of = sum(sum(c.values()) for c in read)
            shares.append(sum(c["truncated"] for c in read) / of if of else 0)
        assert over[-1] == (share > max_share or max(shares) > max_share_shard)


def is_over(rows: RowLedger) -> bool:
    try:
        rows.check()
    except StageFailedError:
        return True
    return False
