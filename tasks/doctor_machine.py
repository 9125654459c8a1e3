"""What the machine has: Python, packages, cores, memory, GPUs."""

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mlcd_core.cluster_memory import available_bytes
from tasks.doctor_findings import Finding, size_text

PACKAGE = "mlcd"
# Ray's own processes take about one, torch in a worker half of one
LITTLE_MEMORY_BYTES = 3e9


def check_packages() -> Iterator[Finding]:
    """Python, every package that ours requires, and that Ray can be imported."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        required = [line for line in metadata.requires(PACKAGE) or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "warning", f"{PACKAGE} is not installed, so what it requires is not known; install it"
        )
        return
    found = {line: _version(_name(line)) for line in required}
    missing = [line for line, version in found.items() if version is None]
    wrong = [f"{_name(line)} {version}" for line, version in found.items() if version and not _is_pinned(line, version)]
    if missing:
        yield Finding("packages", "error", f"missing: {', '.join(missing)}; install {PACKAGE} again")
    if wrong:
        pins = ", ".join(line for line in required if "==" in line)
        yield Finding("packages", "warning", f"{', '.join(wrong)}, but {pins} was tested; install {PACKAGE} again")
    named = {_name(line): version for line, version in found.items() if version}
    yield Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in named.items()))
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
    import torch

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
    except ImportError as error:
        return Finding("ray", "error", f"cannot be imported: {error}; install {PACKAGE} again")
    return Finding("ray", "ok", f"{ray.__version__} can be imported")


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return found[0]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_pinned(requirement: str, version: str) -> bool:
    """Whether the version, without the suffix of a build, is the one that was asked for, if one was."""
    _, equal, wanted = requirement.partition("==")
    return not equal or version.partition("+")[0] == wanted.strip()
