"""What embed costs: python benchmarks/embed.py --data 'train-*.parquet' [--images 20000] [--repeats 2] [--out FILE]

The pattern names Parquet files with the columns key and jpg. Four sections, each a file: the stage beside a bare loop
(`embed_race.py`, with `embed_bare.py` and `embed_pipeline.py`), reading embeddings (`embed_reading.py`), decoding
(`embed_decode.py`) and requests to S3 (`embed_requests.py`). Needs a quiet machine; the stage and the loop have two
threads each. Writes docs/benchmarks/embed.md.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from embed_decode import decode_section
from embed_pipeline import Setting
from embed_race import Race, race, race_section
from embed_reading import reading_section
from machine import describe_machine

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "embed.md"
ACTORS = ((2, 1), (1, 2))  # actors and threads of each: two threads in all
CLIP, CLIP_PIXELS, CLIP_UNIT_ROWS = "ViT-B-32", 224, 50


def hog_race(images: int, unit_rows: list[int]) -> Race:
    """The laptop's embedder, with units of several sizes."""
    contenders = [Setting(*actors, rows) for rows in unit_rows for actors in ACTORS]
    settings = {"embedder": "hog_words", "image_size": 32, "batch_rows": 256}
    return Race("hog_words", settings, contenders, images, shard_rows=1_000, group_rows=100)


def clip_race(images: int, folder: Path) -> Race:
    """A ViT of CLIP with random weights; its units are small, so that the receipts of a short run are many."""
    settings = {"embedder": "open_clip", "architecture": CLIP, "image_size": CLIP_PIXELS, "batch_rows": CLIP_UNIT_ROWS}
    contenders = [Setting(*actors, CLIP_UNIT_ROWS) for actors in ACTORS]
    weights = random_weights(folder / f"{CLIP}.safetensors")
    return Race(f"open_clip {CLIP}", settings, contenders, images, 200, CLIP_UNIT_ROWS, pretrained=str(weights))


def random_weights(path: Path) -> Path:
    """Weights of the whole model as it starts from seed 0."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in open_clip.create_model(CLIP).state_dict().items()}, path)
    return path


def races_section(options: argparse.Namespace, folder: Path) -> list[str]:
    """Both models."""
    entries = [
        ("hog", lambda: hog_race(options.images, options.unit_rows)),
        ("clip", lambda: clip_race(options.clip_images, folder)),
    ]
    entries = [(name, make()) for name, make in entries if name in options.models]
    lines = [
        "## The stage beside a bare loop",
        "",
        "`mlcd run --until embed` on a fresh root, and a plain loop in one process (`benchmarks/embed_bare.py`) that",
        "reads the same shards, decodes with Pillow, encodes with the same model on the CPU, normalises to float16",
        f"and writes nothing. {options.repeats} repeats each, in turns; the median counts. The bare loop uses its",
        "threads in whatever way below is fastest for it.",
        "",
        "Images per second are counted from when every actor has written a receipt to the last receipt; a unit begun",
        "before that counts with the share of its time that was left. `between receipts` is the plainer count, all",
        "images after the first receipt by the time from the first receipt to the last: it flatters a short run with",
        "big units, since several of them are half done at the first receipt, and punishes one whose second actor",
        "starts late. Of the loop both are counted from its first batch on.",
        "",
    ]
    for _, entry in entries:
        lines += race_section(entry, race(entry, options.data, options.repeats, folder))
    return lines


def requests(options: argparse.Namespace, folder: Path) -> list[str]:
    """Counted requests; imported here, since only this needs what the tests need."""
    from embed_requests import requests_section

    return requests_section(options.data, folder)


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], list[str]]] = {
    "race": races_section,
    "reading": lambda options, folder: reading_section(options.megabytes * 10**6, folder),
    "decode": lambda options, _: decode_section(options.decode_runs),
    "requests": requests,
}


def page(options: argparse.Namespace, words: str) -> str:
    """The page in markdown."""
    lines = [
        "# Embed: speed, reading, decoding, requests",
        "",
        f"Written by `python benchmarks/embed.py {words}` on {describe_machine()}; load average before: "
        f"{os.getloadavg()[1]:.1f}.",
        "",
    ]
    with tempfile.TemporaryDirectory(prefix="mlcd-embed-", dir=options.folder) as folder:
        for name in options.sections:
            lines += SECTIONS[name](options, Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)))
    return "\n".join(lines)


def chosen_words(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The options that shape the figures, as on the command line; where files lie is left out."""
    chosen = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    lists = {name: value if isinstance(value, list) else [value] for name, value in chosen.items()}
    words = [
        f"--{name.replace('_', '-')} {' '.join(map(str, values))}"
        for name, values in lists.items()
        if name not in {"data", "out", "folder"}
    ]
    return " ".join([f"--data '{Path(options.data).name}'", *words])


def main() -> None:
    """Measure what is asked for and write the page."""
    parser = argparse.ArgumentParser(description="the embed stage, measured")
    parser.add_argument("--data", required=True, help="pattern of Parquet files with the columns key and jpg")
    parser.add_argument("--images", type=int, default=20_000, help="of the race of hog_words")
    parser.add_argument("--clip-images", type=int, default=1_000, help="of the race of ViT-B/32: about 20 a second")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--unit-rows", type=int, nargs="+", default=[1_000, 500, 100], help="of hog_words")
    parser.add_argument("--models", nargs="+", choices=("hog", "clip"), default=["hog", "clip"])
    parser.add_argument("--megabytes", type=int, default=400, help="of embeddings that are read")
    parser.add_argument("--decode-runs", type=int, default=5)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    options.out.write_text(page(options, chosen_words(options, parser)), encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
