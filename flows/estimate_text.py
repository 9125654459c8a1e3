"""What ``mlcd plan`` says about the cost of clustering: operations, bytes and hours."""

from collections.abc import Mapping
from typing import Any


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """The estimate as lines, with one line per number of devices of a kind."""
    e = estimate
    size = {key: size_text(value) for key, value in e.items() if key.endswith("_bytes")}
    lines = [
        f"cluster: {e['num_rows']:,} rows of {e['dim']} dims to {e['num_centroids']:,} centroids in {e['iterations']} "
        f"iterations, then {e['num_labels']} labels per row",
        f"  operations  {e['iteration_flop']:.3g} an iteration, {e['total_flop']:.3g} with the labels",
        f"  bytes       rows {size['rows_bytes']}, centroids {size['centroids_bytes']}, sums {size['sums_bytes']}",
        f"  memory      of one of {e['workers']} workers, without a GPU or with one:",
        *(f"              {_memory_text(memory)}" for memory in e["worker_memory"]),
        f"  disk        embeddings {size['embeddings_disk_bytes']}, links {size['links_disk_bytes']}, "
        f"labels {size['labels_disk_bytes']}",
        "  time        an iteration; everything (operations alone, GPUs at 60 % of their peak)",
    ]
    for device in e["devices"]:
        name = f"{device['count']} x {device['kind']}"
        times = f"{duration_text(device['iteration_s']):>10} {duration_text(3600 * device['total_h']):>12}"
        lines.append(f"    {name:<16}{times}")
    return "\n".join(lines)


def _memory_text(memory: Mapping[str, Any]) -> str:
    items = ", ".join(f"{name} {size_text(size)}" for name, size in memory["items"].items())
    return f"{size_text(memory['total_bytes'])} of {memory['where']}: {items}"


def size_text(num_bytes: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def duration_text(seconds: float) -> str:
    """Seconds in the largest unit that is not below one."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s"
