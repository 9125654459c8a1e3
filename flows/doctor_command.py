"""``mlcd doctor``: whether this machine, the storage and the data are fit for a run."""

import argparse
import json
from typing import TYPE_CHECKING

from flows.options import DEFAULT_ROOT, add_output_options

if TYPE_CHECKING:
    from flows.options import Commands

DONE, FAILED = 0, 1


def add_parser(commands: "Commands") -> None:
    """Add ``doctor``."""
    doctor = commands.add_parser(
        "doctor",
        help="check the machine, the storage and the data before a run",
        description="Check packages, cores, memory, disk, GPUs, Prefect, the storage of a root and the first shard of "
        "the data that can be read. Exit code 1 when a run would fail, 0 with warnings or without.",
    )
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--data", default="", help="shards whose first one is opened: file, folder or quoted pattern")
    doctor.add_argument("--image-column", default="auto", metavar="NAME", help="column of the images (default auto)")
    doctor.add_argument("--root", default=DEFAULT_ROOT, help=f"folder or s3:// address (default {DEFAULT_ROOT})")
    add_output_options(doctor)


def _doctor(options: argparse.Namespace) -> int:
    import os

    from flows.addresses import absolute
    from tasks.doctor import diagnose

    data = "" if options.data == "demo" else absolute(options.data)
    findings = diagnose(absolute(options.root), data, image_column=options.image_column, environment=os.environ)
    if options.json:
        print(json.dumps({"findings": [vars(finding) for finding in findings]}))
    else:
        from flows.rendering import aligned

        print(aligned(["", "", ""], [(finding.state, finding.subject, finding.text) for finding in findings]).strip())
    return FAILED if any(finding.state == "error" for finding in findings) else DONE
