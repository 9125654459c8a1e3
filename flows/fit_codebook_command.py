"""``mlcd fit-codebook``: the codebook of the embedder ``hog_words``, fitted to a data set of one's own."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.options import add_output_options

if TYPE_CHECKING:
    from flows.options import Commands
    from tasks.codebook import CodebookRequest, FittedCodebook

DONE = 0


def add_parser(commands: "Commands") -> None:
    """Add ``fit-codebook``."""
    fit = commands.add_parser(
        "fit-codebook",
        help="fit the codebook of hog_words to your images",
        description="Fit the words that the embedder hog_words looks for to images drawn from your shards. No label is "
        "read. The same data, options and versions give the same file. The packaged codebook was fitted to 4,000 "
        "scenes of digits, with the defaults below.",
    )
    fit.set_defaults(command=_fit)
    fit.add_argument("--data", required=True, help="Parquet shards: file, folder, quoted pattern, or s3:// address")
    fit.add_argument("--out", required=True, metavar="FILE", help="the codebook, for example book.safetensors")
    fit.add_argument("--images", type=int, default=4_000, metavar="N", help="images drawn (default 4000)")
    fit.add_argument("--words", type=int, default=500, metavar="K", help="words of the codebook (default 500)")
    fit.add_argument("--dim", type=int, default=128, metavar="D", help="dims of an embedding (default 128)")
    fit.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default 0)")
    fit.add_argument("--image-size", type=int, default=32, metavar="P", help="pixels, as embed.image_size (default 32)")
    fit.add_argument("--image-column", default="auto", metavar="NAME", help="as embed.image_column (default auto)")
    add_output_options(fit)


def _fit(options: argparse.Namespace) -> int:
    from flows.addresses import absolute
    from tasks.codebook import CodebookRequest, fit_codebook_file

    request = CodebookRequest(
        data=absolute(options.data),
        # a path loses the slash at its end, which says that a folder is meant
        out=absolute(options.out) + ("/" if options.out.endswith("/") else ""),
        num_images=options.images,
        num_words=options.words,
        dim=options.dim,
        seed=options.seed,
        image_size=options.image_size,
        image_column=options.image_column,
    )
    fitted = fit_codebook_file(request, _say)
    next_command = _next(request, fitted)
    print(json.dumps({**vars(fitted), "next": next_command}) if options.json else _text(fitted, next_command))
    return DONE


def _say(event: str, values: Mapping[str, Any]) -> None:
    """Progress on stderr: the fit itself takes seconds to minutes."""
    assert event == "codebook_images"
    skipped = f", {values['skipped']:,} that cannot be decoded skipped" if values["skipped"] else ""
    print(f"fit-codebook: {values['images']:,} images drawn{skipped}; fitting", file=sys.stderr, flush=True)


def _text(fitted: "FittedCodebook", next_command: str) -> str:
    skipped = f", {fitted.skipped:,} that cannot be decoded were skipped" if fitted.skipped else ""
    return (
        f"{fitted.path}: {fitted.bytes:,} bytes, sha256 {fitted.sha256}\n"
        f"fitted to {fitted.images:,} images{skipped}\n"
        f"next: {next_command}"
    )


def _next(request: "CodebookRequest", fitted: "FittedCodebook") -> str:
    import shlex

    column = request.image_column
    chosen = "" if column == "auto" else f"--set embed.image_column={shlex.quote(column)} "
    return (
        f"mlcd run --data {shlex.quote(request.data)} {chosen}--set embed.embedder=hog_words "
        f"--set embed.image_size={request.image_size} --set embed.pretrained={shlex.quote(fitted.path)}"
    )
