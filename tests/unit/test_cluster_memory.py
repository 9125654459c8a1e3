"""Memory is computed before anything starts, and a plan that does not fit says its numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlcd_core.cluster_memory import MemoryPlan, available_bytes, check_memory, worker_bytes
from mlcd_core.errors import ConfigError

PAPER = {"num_centroids": 1_000_000, "dim": 768}


def test_a_worker_of_the_paper_holds_what_is_computed_by_hand():
    plan = worker_bytes(rows=5_000_000, **PAPER)
    assert plan.items["centroids"] == 3_072_000_000
    assert plan.items["coarse centroids"] == 768_000_000
    assert plan.items["sums"] == 6_152_000_000
    assert plan.items["labels"] == 20_000_000
    assert "rows" not in plan.items
    assert plan.total == sum(plan.items.values())


def test_workers_of_one_machine_hold_their_own_centroids_and_share_the_rows():
    one, four = (worker_bytes(rows=1000, workers=workers, **PAPER).items for workers in (1, 4))
    assert {name for name in one if four[name] != 4 * one[name]} == {"labels", "sums being saved"}
    assert all(four[name] == one[name] for name in ("labels", "sums being saved"))


def test_rows_that_cannot_be_mapped_count_once_for_all_workers_of_a_machine():
    mapped, read = (worker_bytes(rows=5_000_000, workers=2, rows_mapped=mapped, **PAPER) for mapped in (True, False))
    assert read.items == {**mapped.items, "rows": 7_680_000_000}


def test_a_gpu_holds_its_rows_in_half_precision():
    plan = worker_bytes(rows=5_000_000, device="cuda", **PAPER)
    assert plan.items["rows"] == 7_680_000_000
    assert plan.items["coarse centroids"] == 1_536_000_000


def test_plan_that_does_not_fit_is_refused_with_its_numbers_and_the_largest_that_fits():
    plan = MemoryPlan("the machine's memory", {"centroids": 8 * 10**9, "labels": 10**9}, 1_000_000, 8000)
    check_memory(plan, 9 * 10**9)
    with pytest.raises(
        ConfigError, match=r"needs 9\.00 GB .*centroids 8\.00 GB, labels 1\.00 GB.* 5\.00 GB"
    ) as refused:
        check_memory(plan, 5 * 10**9)
    assert "cluster.num_centroids <= 500,000" in str(refused.value)


def test_the_largest_number_of_centroids_named_fits():
    plan = worker_bytes(rows=5_000_000, workers=3, **PAPER)
    with pytest.raises(ConfigError) as refused:
        check_memory(plan, 20 * 10**9)
    named = int(str(refused.value).split("num_centroids <= ")[1].split(", ")[0].replace(",", ""))
    assert 19.9 * 10**9 < worker_bytes(rows=5_000_000, workers=3, num_centroids=named, dim=768).total <= 20 * 10**9


def machine(tmp_path: Path, groups: str) -> dict[str, Path]:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    cgroups.mkdir()
    return {"proc": proc, "cgroups": cgroups}


def test_memory_is_what_the_kernel_has_left(tmp_path):
    assert available_bytes(**machine(tmp_path, "0::/\n")) == 8000 * 1024


@pytest.mark.parametrize(
    ("groups", "folder", "names"),
    [
        ("0::/pod/worker\n", "pod", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:cpu:/\n4:memory:/pod/worker\n0::/\n",
            "memory/pod",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_memory_is_what_the_control_groups_leave_if_that_is_less(tmp_path, groups, folder, names):
    here = machine(tmp_path, groups)
    limit, usage, idle = names
    pod = here["cgroups"] / folder
    (pod / "worker").mkdir(parents=True)
    # the worker's own group has no limit that counts, the one above it has
    (pod / "worker" / limit).write_text("max\n" if limit == "memory.max" else f"{2**62}\n")
    for group in (pod, pod / "worker"):
        (group / usage).write_text("500000\n")
        (group / "memory.stat").write_text(f"anon 1\n{idle} 200000\n")
    (pod / limit).write_text("1000000\n")
    assert available_bytes(**here) == 1_000_000 - 300_000


def test_planning_loads_no_torch():
    code = "import sys, mlcd_core.cluster_memory, mlcd_core.embedded_points; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
