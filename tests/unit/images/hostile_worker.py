"""Decodes the files named on stdin (JSON) one by one, in a process of its own, and says what each cost.

    python hostile_worker.py IMAGE_SIZE MAX_PIXELS MODE < names.json

Prints a JSON list of [status, CPU seconds, peak memory so far in MB above the start's]. The seconds of a file that
took long are those of the fastest of three times, for a busy machine can make any single one long.
"""

import json
import sys
import time
from pathlib import Path

from mlcd_core.images.decode import decode_images

LONG_S = 0.7


def main(image_size: str, max_pixels: str, mode: str) -> None:
    names = json.load(sys.stdin)
    decode_images([b"loads everything there is to load"], image_size=8, max_pixels=64)
    start_mb, found = peak_mb(), []
    for name in names:
        data = Path(name).read_bytes()

        def decode(data: bytes = data) -> tuple[int, float]:
            started = time.process_time()
            decoded = decode_images([data], image_size=int(image_size), max_pixels=int(max_pixels), mode=mode)
            return int(decoded.status_B[0]), time.process_time() - started

        status, seconds = decode()
        if seconds > LONG_S:
            seconds = min(seconds, decode()[1], decode()[1])
        found.append([status, seconds, peak_mb() - start_mb])
    json.dump(found, sys.stdout)


def peak_mb() -> float:
    """Of this program's own memory: getrusage also counts what its parent held before it became this program."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; the peak of memory is measured on Linux alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
