"""What a benchmark ran on, in words for its page."""

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil


def describe_machine() -> str:
    """Processor, cores, memory, Python and the libraries that matter."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = round(psutil.virtual_memory().total / 2**30)
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "prefect", "numpy"))
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory} GiB, Linux, Python {platform.python_version()}, {libraries}"
