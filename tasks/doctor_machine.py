"""What the machine has: Python, packages, cores, memory, GPUs."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from mlcd_core.cluster_memory import available_bytes
from tasks.doctor_findings import Finding
from tasks.spelling import size_text

PACKAGE = "mlcd"
# Ray's own processes take about one, torch in a worker half of one
LITTLE_MEMORY_BYTES = 3e9


def check_packages() -> Iterator[Finding]:
    """Python, every package that ours requires, and that Ray can be imported."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        required = [asked for line in metadata.requires(PACKAGE) or [] if _is_needed(asked := Requirement(line))]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "warning", f"{PACKAGE} is not installed, so what it requires is not known; install it"
        )
        return
    found = [(asked, _version(asked.name)) for asked in required]
    missing = [str(asked) for asked, version in found if version is None]
    there = [(asked, version) for asked, version in found if version is not None]
    wrong = [f"{asked.name} {version} (expected {asked})" for asked, version in there if not _fits(asked, version)]
    fit = [f"{asked.name} {version}" for asked, version in there if _fits(asked, version)]
    if missing:
        yield Finding("packages", "error", f"missing: {', '.join(missing)}; install {PACKAGE} again")
    if wrong:
        yield Finding("packages", "warning", f"not the tested ones: {', '.join(wrong)}; install {PACKAGE} again")
    if fit:
        yield Finding("packages", "ok", ", ".join(fit))
    yield _check_ray()


def check_machine() -> Iterator[Finding]:
    """Cores and memory that this process may use."""
    yield Finding("cores", "ok", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    available = available_bytes()
    text = f"{size_text(available)} available"
    if available < LITTLE_MEMORY_BYTES:
        yield Finding("memory", "warning", f"{text}; expected {size_text(LITTLE_MEMORY_BYTES)}: close other programs")
    else:
        yield Finding("memory", "ok", text)


def check_gpus(*, driver: Path = Path("/proc/driver/nvidia/version")) -> Iterator[Finding]:
    """Every CUDA device, or that there is none."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it links to does not load
        yield Finding("gpu", "error", f"torch cannot be imported: {error}; install {PACKAGE} again")
        return
    if not torch.cuda.is_available():
        if driver.exists():
            text = f"there is an NVIDIA driver, but torch {torch.__version__} finds no device; install the gpu extra"
            yield Finding("gpu", "warning", text)
        else:
            yield Finding("gpu", "ok", "none: every stage runs on the CPU")
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding("gpu", "ok", f"{number}: {device.name}, {size_text(device.total_memory)}")


def _check_ray() -> Finding:
    try:
        import ray
    except (ImportError, OSError) as error:
        return Finding("ray", "error", f"cannot be imported: {error}; install {PACKAGE} again")
    return Finding("ray", "ok", f"{ray.__version__} can be imported")


def _is_needed(asked: Requirement) -> bool:
    """Here, and without any extra."""
    return asked.marker is None or asked.marker.evaluate({"extra": ""})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _fits(asked: Requirement, version: str) -> bool:
    # a build's suffix, as of 2.15.0+cu128, does not count where the requirement has none
    return asked.specifier.contains(version, prereleases=True)
