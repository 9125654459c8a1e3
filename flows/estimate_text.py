"""What ``mlcd plan`` says about the cost of clustering and of the towers: operations, bytes and hours."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.spelling import duration_text, size_text


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """The estimates as lines, with one line per number of devices of a kind."""
    return "\n\n".join(text for text in (_clustering_text(estimate), _towers_text(estimate["towers"])) if text)


def _clustering_text(estimate: Mapping[str, Any]) -> str:
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
        times = f"{duration_text(device['iteration_s']):>10} {duration_text(3600 * device['total_h']):>12}"
        lines.append(f"    {device_text(device):<16}{times}")
    return "\n".join(lines)


def _towers_text(towers: Sequence[Mapping[str, Any]]) -> str:
    if not towers:
        return ""
    lines = []
    for t in towers:
        lines += [
            f"{t['stage']}: {t['images']:,} images of {t['image_size']} pixels through {t['tower']}, "
            f"{t['parameters'] / 1e6:,.1f} M parameters, {t['precision']}",
            f"  operations  {t['image_flop']:.3g} an image, {t['total_flop']:.3g} in all",
        ]
        if t["worker_memory"]:
            lines += [
                f"  memory      of one of {t['workers']} workers:",
                f"              {_memory_text(t['worker_memory'])}",
            ]
    names = "; ".join(t["stage"] for t in towers)
    lines.append(f"  time        {names} (operations alone, GPUs at 40 % of their peak)")
    for devices in zip(*(t["devices"] for t in towers), strict=True):
        times = " ".join(f"{hours_text(device['total_h']):>12}" for device in devices)
        lines.append(f"    {device_text(devices[0]):<16}{times}")
    return "\n".join(lines)


def hours_text(hours: float | None) -> str:
    """So many hours, or a dash."""
    return "-" if hours is None else duration_text(3600 * hours)


def device_text(device: Mapping[str, Any]) -> str:
    """So many of that kind."""
    return f"{device['count']} x {device['kind']}"


def _memory_text(memory: Mapping[str, Any]) -> str:
    items = ", ".join(f"{name} {size_text(size)}" for name, size in memory["items"].items())
    return f"{size_text(memory['total_bytes'])} of {memory['where']}: {items}"
