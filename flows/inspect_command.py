"""``mlcd inspect``: what became of one shard, or of one image."""

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.options import add_output_options, add_root_options

if TYPE_CHECKING:
    from flows.options import Commands


def add_parser(commands: "Commands") -> None:
    """Add ``inspect shard`` and ``inspect image``."""
    inspect = commands.add_parser("inspect", help="what became of one shard, or of one image")
    kinds = inspect.add_subparsers(metavar="shard|image", required=True)
    shard = kinds.add_parser("shard", help="units, rows per status, attempts, seconds and bad keys of a shard")
    shard.add_argument("shard", metavar="SHARD", help="its address or path, its file name, or the start of its digest")
    shard.set_defaults(command=_shard)
    image = kinds.add_parser("image", help="shard, row, status and labels of an image")
    image.add_argument("key", metavar="KEY", help="its key; every row that has it is shown")
    image.set_defaults(command=_image)
    for parser in (shard, image):
        add_root_options(parser)
        add_output_options(parser)


def _shard(options: argparse.Namespace) -> int:
    from flows.addresses import absolute
    from tasks.inspection import inspect_shard

    _show(inspect_shard(absolute(options.root), options.name, options.shard), as_json=options.json)
    return 0


def _image(options: argparse.Namespace) -> int:
    from flows.addresses import absolute
    from tasks.image_inspection import inspect_image

    _show(inspect_image(absolute(options.root), options.name, options.key), as_json=options.json)
    return 0


def _show(report: Mapping[str, Any], *, as_json: bool) -> None:
    from flows.inspect_text import image_text, shard_text

    if as_json:
        print(json.dumps(report))
    else:
        print(shard_text(report) if "units" in report else image_text(report))
