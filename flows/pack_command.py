"""``mlcd pack``: image folders, ImageFolder trees and webdataset tars to Parquet shards."""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.options import add_output_options

if TYPE_CHECKING:
    from flows.options import Commands
    from tasks.pack import PackSummary

DONE = 0
MEND_FAILED = "mend them and run again with --retry-failed, or with --replace where files changed"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def add_parser(commands: "Commands") -> None:
    """Add ``pack``."""
    pack = commands.add_parser(
        "pack",
        help="image folders or webdataset tars to the shards that run reads",
        description="Pack image folders, ImageFolder trees (class/x.jpg) or webdataset tars into Parquet shards. The "
        "bytes of images are kept unless --resize is given; an image that cannot be read is a row that says so. "
        "Killed at any time, the same command goes on. The pack is whole when DIR holds pack.json.",
    )
    pack.set_defaults(command=_pack)
    pack.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, .tar file or quoted pattern, on this machine"
    )
    pack.add_argument("--to", required=True, metavar="DIR", help="folder or s3:// address of the shards alone")
    kinds = ("auto", "folder", "imagefolder", "webdataset")
    pack.add_argument("--kind", choices=kinds, default="auto", help="what the sources are (default: told by the files)")
    pack.add_argument("--rows-per-shard", type=int, default=10_000, metavar="N", help="at most (default 10000)")
    pack.add_argument(
        "--max-shard-bytes", type=_size, default=256 << 20, metavar="SIZE", help="at most, about (default 256MiB)"
    )
    pack.add_argument(
        "--resize", type=int, default=0, metavar="PIXELS", help="shrink larger images to this short side, as JPEG"
    )
    pack.add_argument("--quality", type=int, default=95, help="of those JPEGs (default 95)")
    pack.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    pack.add_argument("--replace", action="store_true", help="where DIR holds another pack: make it this one")
    pack.add_argument("--retry-failed", action="store_true", help="make shards with unread images again")
    pack.add_argument("--allow-broken", action="store_true", help="accept tars that end early as they are")
    add_output_options(pack)


def _size(text: str) -> int:
    """Bytes of ``500MB``, ``1GiB`` or ``1000``."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?|)B?", text.upper())
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 500MB or 1GiB")
    return int(float(parts[1]) * UNITS[parts[2]])


def _pack(options: argparse.Namespace) -> int:
    from flows.addresses import absolute
    from tasks.pack import PackRequest, pack

    summary = pack(
        PackRequest(
            sources=tuple(options.sources),
            to=absolute(options.to),
            kind=options.kind,
            rows_per_shard=options.rows_per_shard,
            max_shard_bytes=options.max_shard_bytes,
            resize=options.resize,
            quality=options.quality,
            num_workers=options.workers,
            changed="replace" if options.replace else "refuse",
            failed="retry" if options.retry_failed else "keep",
            broken="accept" if options.allow_broken else "refuse",
        ),
        _say,
    )
    print(json.dumps({**vars(summary), "next": _next(summary)}) if options.json else _text(summary))
    return DONE


def _say(event: str, values: Mapping[str, Any]) -> None:
    """Progress, as lines on stderr."""
    print(f"pack: {_line(event, values)}", file=sys.stderr, flush=True)


def _line(event: str, v: Mapping[str, Any]) -> str:
    from tasks.spelling import duration_text

    if event == "pack_sources":
        return f"{v['kind']}: {v['why']}"
    if event == "pack_indexing":
        return f"read the headers of {v['done']:,} of {v['tars']:,} tars"
    eta = "" if v["eta_s"] is None else f", {duration_text(v['eta_s'])} to go"
    return (
        f"{v['shards_done']:,} of {v['shards']:,} shards, {v['images_done']:,} of {v['images']:,} images, "
        f"{v['images_per_s']:,.0f} images/s{eta}"
    )


def _text(summary: "PackSummary") -> str:
    from tasks.spelling import duration_text, size_text

    made = (
        "nothing was left to do"
        if summary.packed == 0
        else (f"{summary.packed:,} made now in {duration_text(summary.seconds)}, {summary.images_per_s:,.0f} images/s")
    )
    ignored = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(summary.ignored.items()))
    lines = [
        f"{summary.images:,} images in {summary.shards:,} shards, {size_text(summary.bytes)}, in {summary.to}; {made}",
        summary.resized and f"resized: {summary.resized:,}",
        summary.not_resized
        and f"not resized, since they cannot be decoded or cost too much to: {summary.not_resized:,}, kept as they are",
        summary.unlabelled and f"without a label: {summary.unlabelled:,}; the .cls of a sample must hold an int",
        summary.failed and f"without an image: {summary.failed:,}; {MEND_FAILED}",
        *(f"  {failure}" for failure in summary.failures),
        ignored and f"not packed: {ignored}",
        f"next: {_next(summary)}",
    ]
    return "\n".join(str(line) for line in lines if line)


def _next(summary: "PackSummary") -> str:
    import shlex

    # evaluation takes no row without a label
    labels = " --label-column label" if summary.unlabelled == 0 else ""
    return f"mlcd run --data {shlex.quote(summary.to.rstrip('/') + '/*.parquet')}{labels}"
