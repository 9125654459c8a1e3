"""What a stage will write and take, by one that was measured; figures worked out by hand."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flows.costs_text import costs_text
from mlcd_core.identity import fingerprint
from mlcd_core.specs import ClusterSpec, EmbedSpec, EvaluateSpec, LabelSpec, StageSpec, TrainSpec
from mlcd_core.store import LocalFiles, StageFolder
from tasks.costs import Cost, Measured, Size, find_measured, stage_cost
from tasks.work_clock import WorkClock

PLANNED = Size(rows=6000, test_rows=1000, units=12, num_centroids=200, iterations=20, steps=900, links=5, records=45)
TIMING = {"workers": 2, "seconds": 1.0, "work": 100, "work_s": 1.0}


class Root:
    """A folder with stages that were measured."""

    def __init__(self, folder: Path) -> None:
        self.files = LocalFiles(folder)

    def commit(
        self,
        spec: StageSpec,
        parts: dict[str, int],
        *,
        rows: int = 0,
        metrics: dict[str, Any] | None = None,
        source: str = "in",
        **notes: Any,
    ) -> None:
        """Seal a manifest with parts of so many bytes, and ``rows`` in each."""
        sized = {name: (rows, size) for name, size in parts.items()}
        self.commit_parts(spec, sized, metrics=metrics, source=source, **notes)

    def commit_parts(
        self,
        spec: StageSpec,
        parts: dict[str, tuple[int, int]],
        *,
        metrics: dict[str, Any] | None = None,
        source: str = "in",
        **notes: Any,
    ) -> None:
        """Seal a manifest with parts of so many rows and bytes."""
        folder = StageFolder(self.files, spec)
        folder.open()
        units = tuple(fingerprint(name) for name in parts)
        inputs = {"in": fingerprint(source)}
        plan = folder.plan(inputs, units)
        for task, (name, (rows, size)) in zip(plan.pending, parts.items(), strict=True):
            folder.commit(task, [folder.put(name, ".bin", name[0].encode() * size, rows=rows, usable=rows)])
        receipts = folder.receipts(units, plan)
        folder.seal(inputs, receipts, attempt=1, metrics=metrics or {}, notes=notes)

    def like(self, spec: StageSpec) -> Measured:
        found = find_measured(self.files, spec, "a run", workers=2, dim=128)
        assert found is not None
        return found

    def cost(self, spec: StageSpec, **options: Any) -> Cost:
        cost = stage_cost(spec, PLANNED, self.like(spec), **options)
        assert cost is not None
        return cost


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_rows_cost_what_rows_cost_and_the_rest_stays(root: Root) -> None:
    root.commit(
        EmbedSpec(),
        {"a": 1000, "b": 1000},
        rows=100,
        timing={"workers": 2, "seconds": 12.0, "work": 100, "work_s": 4.0},
        devices=[],
    )
    cost = root.cost(EmbedSpec())
    # 200 rows took 8 s beside 4 s that are fixed; 6000 rows take 240 s
    assert cost.seconds == pytest.approx(4 + 240)
    like = root.like(EmbedSpec())
    assert cost.bytes == round(2000 * 30 + 12 * like.receipt_bytes + 6 * like.record_bytes)
    assert cost.gpu_hours == 0
    part = root.cost(EmbedSpec(), missing_share=0.25)
    assert (part.seconds, part.bytes) == (pytest.approx(4 + 60), pytest.approx(cost.bytes / 4, abs=1))


def test_the_folder_beside_its_data_is_records(root: Root, tmp_path: Path) -> None:
    root.commit(EmbedSpec(), {"a": 1000}, rows=100, timing={"workers": 2, "seconds": 1.0, "work": 100, "work_s": 1.0})
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    like = root.like(EmbedSpec())
    assert like.record_bytes + like.receipt_bytes == written - 1000  # of the one receipt
    assert like.receipt_bytes == sum(path.stat().st_size for path in tmp_path.rglob("units/*"))


def test_a_file_without_rows_has_bytes_too(root: Root) -> None:
    # 100 bytes and 5 for each row
    root.commit_parts(EmbedSpec(), {"a": (100, 600), "b": (100, 600), "c": (20, 200)}, timing=TIMING)
    like = root.like(EmbedSpec())
    assert root.cost(EmbedSpec()).bytes == round(12 * 100 + 6000 * 5 + 12 * like.receipt_bytes + 4 * like.record_bytes)


def test_iterations_cost_by_rows_times_centroids_and_two_links_stay(root: Root) -> None:
    spec = ClusterSpec(num_centroids=50, iterations=3)
    metrics = {"identical_of": 1200, "iterations": 4}
    root.commit(
        spec,
        {"c": 500},
        rows=50,
        metrics=metrics,
        timing={"workers": 2, "seconds": 9.0},
        iteration_seconds=[1.0, 2.0, 3.0],
        device="cuda",
    )
    cost = root.cost(ClusterSpec(num_centroids=200, iterations=20))
    # 2 s an iteration, five times the rows and four times the centroids; 3 s are fixed
    assert cost.seconds == pytest.approx(3 + 20 * 2 * 5 * 4)
    like = root.like(spec)
    assert cost.bytes == 2 * 500 * 4 + like.record_bytes + like.receipt_bytes * 20
    assert cost.gpu_hours == pytest.approx(2 * cost.seconds / 3600)


def test_steps_cost_by_images_and_class_blocks_by_classes(root: Root) -> None:
    curve = [{"step": 20, "images_per_s": 64.0}, {"step": 40, "images_per_s": 32.0}]
    root.commit(
        TrainSpec(epochs=2),
        {"tower": 700, "block-0000": 100},
        metrics={"curve": curve, "num_classes": 50},
        timing={"workers": 2, "seconds": 100.0},
        ran_on=[{"device": "cpu"}],
    )
    cost = root.cost(TrainSpec(epochs=30))
    # 20 steps of 64 images took 20 s and 20 took 40 s, so 40 s are fixed; 900 steps take 900 * 1.5 s
    assert cost.seconds == pytest.approx(40 + 1350)
    like = root.like(TrainSpec(epochs=2))
    assert cost.bytes == round(2 * (700 + 100 * 4) + 5 * like.receipt_bytes + like.record_bytes * 45 / 2)


def test_labels_of_more_centroids_take_as_much_longer_as_clustering_takes_for_them(root: Root) -> None:
    timing = {"workers": 2, "seconds": 10.0, "work": 100, "work_s": 2.0}
    root.commit(LabelSpec(), {"a": 10, "b": 10}, rows=100, metrics={"num_centroids": 50}, timing=timing)
    assert root.cost(LabelSpec()).seconds == pytest.approx(6 + 6000 * 0.02)
    # 150 centroids more, each a millisecond for a row
    assert root.cost(LabelSpec(), pair_s=0.001).seconds == pytest.approx(6 + 6000 * (0.02 + 0.15))


def test_lost_receipts_are_no_bytes(root: Root, tmp_path: Path) -> None:
    root.commit(EmbedSpec(), {"a": 10}, rows=100, timing=TIMING)
    for receipt in tmp_path.rglob("units/*"):
        receipt.unlink()
    assert root.like(EmbedSpec()).receipt_bytes == 0


def test_other_numbers_of_workers_and_dims_tell_nothing(root: Root) -> None:
    timing = {"workers": 2, "seconds": 10.0, "work": 100, "work_s": 2.0}
    root.commit(LabelSpec(), {"a": 10}, rows=100, metrics={"num_centroids": 50}, timing=timing, dim=128)
    assert find_measured(root.files, LabelSpec(), "a run", workers=2, dim=128) is not None
    assert find_measured(root.files, LabelSpec(), "a run", workers=4, dim=128) is None
    assert find_measured(root.files, LabelSpec(), "a run", workers=2, dim=768) is None


def test_records_are_those_of_the_one_that_was_measured(root: Root) -> None:
    root.commit(EmbedSpec(), {"a": 10, "b": 10}, rows=100, timing=TIMING)
    before = root.like(EmbedSpec())
    root.commit(EmbedSpec(), {"c": 10}, rows=1, timing={**TIMING, "work": 1}, source="other")
    after = root.like(EmbedSpec())
    assert (after.manifest, after.record_bytes) == (before.manifest, before.record_bytes)


def test_evaluation_costs_by_images_encoded(root: Root) -> None:
    root.commit(EvaluateSpec(), {"m": 10}, timing={"workers": 2, "seconds": 15.0, "work": 1500, "work_s": 5.0})
    assert root.cost(EvaluateSpec(label_column="labels")).seconds == pytest.approx(10 + 15_000 / 300)


def test_what_has_other_settings_tells_nothing(root: Root) -> None:
    timing = {"workers": 2, "seconds": 1.0, "work": 100, "work_s": 1.0}
    root.commit(LabelSpec(num_labels=4), {"a": 10}, rows=200, timing=timing)
    assert find_measured(root.files, LabelSpec(num_labels=8), "a run", workers=2, dim=128) is None
    root.commit(EmbedSpec(image_size=64), {"a": 10}, rows=200, timing=timing)
    assert find_measured(root.files, EmbedSpec(image_size=32), "a run", workers=2, dim=128) is None
    assert find_measured(root.files, EmbedSpec(image_size=64, rows_per_unit=7), "a run", workers=2, dim=128) is not None


def test_one_unit_has_no_speed(root: Root) -> None:
    root.commit(LabelSpec(), {"a": 10}, rows=200, timing={"workers": 2, "seconds": 1.0})
    assert stage_cost(LabelSpec(), PLANNED, root.like(LabelSpec())) is None


def test_the_clock_sees_the_time_between_units() -> None:
    times = iter([100.0, 103.0, 105.0, 109.0, 110.0])
    told = []
    clock = WorkClock(lambda event, values: told.append((event, dict(values))), now=lambda: next(times))
    clock("measured", {"other": 1})
    for rows in (10, 25, 40):
        clock("unit", {"rows": rows})
    assert clock.timing() == {"seconds": 10.0, "other": 1, "work": 30.0, "work_s": 6.0}
    assert told == [("unit", {"rows": rows}) for rows in (10, 25, 40)]


def test_the_text_sums_and_says_what_is_unknown() -> None:
    cost = asdict(Cost(2_000_000, 90.0, 0.05, "the probe on a", price=3.0))
    plans = [
        {"stage": "embed", "plan": "miss", "round": 1, "cost": cost},
        {"stage": "cluster", "plan": "waits", "round": 1, "cost": {**cost, "gpu_hours": 0.0}},
        {"stage": "label", "plan": "waits", "round": 1, "cost": None},
        {"stage": "train", "plan": "hit", "round": 1, "cost": None},
    ]
    lines = [" ".join(line.split()) for line in costs_text(plans).splitlines()]
    assert lines[1] == "embed 2 MB 1.5 min, 0.05 GPU-hours, 3.00 to pay, as the probe on a"
    assert lines[3] == "in all 4 MB 3.0 min, 0.05 GPU-hours, 6.00 to pay"
    assert lines[4].startswith("cost unknown of label:")


def test_without_a_price_nothing_is_to_pay() -> None:
    plans = [{"stage": "embed", "plan": "miss", "round": 1, "cost": asdict(Cost(2_000_000, 90.0, 0.0, "a run on a"))}]
    assert "pay" not in costs_text(plans)
    assert costs_text(plans).splitlines()[1].endswith("1.5 min, as a run on a")


def test_what_has_no_work_to_measure_costs_what_is_fixed_or_is_unknown(root: Root) -> None:
    root.commit(EvaluateSpec(), {"m": 10}, timing={"workers": 2, "seconds": 7.0})
    assert root.cost(EvaluateSpec()).seconds == 7.0
    spec = ClusterSpec(num_centroids=50)
    metrics = {"identical_of": 1200}
    root.commit(spec, {"c": 500}, rows=50, metrics=metrics, timing={"workers": 2, "seconds": 9.0}, iteration_seconds=[])
    assert stage_cost(spec, PLANNED, root.like(spec)) is None
    root.commit(EmbedSpec(), {"a": 10}, rows=10, timing={"workers": 2, "seconds": 1.0, "work": 0.0, "work_s": 1.0})
    assert stage_cost(EmbedSpec(), PLANNED, root.like(EmbedSpec())) is None
