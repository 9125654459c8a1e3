"""Disturb embedding on S3 at random times and show that nothing is lost, doubled, reordered or read again.

    python -m tests.chaos.embed_s3 --kills 50 --seed 0 [--folder D] [--shards 24] [--rows 600]

Data and root lie on an S3 server in its own process, behind a proxy that logs every request. An undisturbed run of
``mlcd run --until embed`` gives the reference. Then fresh roots get the same command, which is disturbed at times drawn
from the seed on this script's own clock: SIGKILL of the driver's process group, of an actor, of the raylet, and the
store stopped for seconds. A run that was ended is started again, until it ends well; then the next root, until
``--kills`` disturbances fell between a first receipt and its manifest.

Each root must hold every row once, in order, and the very files of the reference; receipts that were seen at a
disturbance must stay; and shards with a receipt must not be read again. Not counted as that, and given beside, are the
requests by which every start checks the columns of the first shard before it runs anything. At the end no process of
any run may be left after three minutes. Prints a table on stderr and one JSON object on stdout; exit code 1 on any
failure.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos.disturbances import Family, first_word, killed
from tests.chaos.disturbed_root import DisturbedRoot
from tests.chaos.embed_s3_report import KINDS, Held, Verdict, held, judge, table
from tests.chaos.s3_world import DATA, World, address, put_shards, world

SETTINGS = ("--set=embed.workers=2", "--set=embed.device=cpu")
# Ray's agents outlive a killed driver by up to a minute and more
LEFT_S = 180.0


def command(root: str) -> list[str]:
    """The words of the command that is run undisturbed, and disturbed."""
    return ["run", "--data", address(DATA), "--root", address(root), "--until", "embed", "--json", *SETTINGS]


def undisturbed(here: World, root: str, keys: Sequence[str]) -> Held:
    """Run the command to its end; what it made, which must be all rows in order."""
    family = here.start(command(root), root)
    code = family.child.wait()
    assert code == 0, (here.folder / f"{root}.err").read_text()
    reference = held(here.store, root)
    assert reference.keys == list(keys), "the undisturbed run does not hold the rows of the shards in order"
    return reference


def disturbed_roots(here: World, draw: random.Random, wanted: int) -> Iterator[DisturbedRoot]:
    """Roots, each to its end, until enough disturbances counted."""
    counted = 0
    for number in range(wanted * 2 + 5):
        disturbed = DisturbedRoot(here, f"root-{number:03d}", command(f"root-{number:03d}"), draw)
        disturbed.run_to_end()
        counted += len(disturbed.counted())
        yield disturbed
        if counted >= wanted:
            return


def left_behind(families: Sequence[Family], limit_s: float) -> tuple[list[str], float]:
    """Wait until no process of the runs lives; what still does at the limit, which is then killed, and the seconds."""
    started = time.monotonic()
    while True:
        alive = [process for family in families for process in family.members()]
        waited_s = time.monotonic() - started
        if not alive or waited_s > limit_s:
            names = [f"{process.pid} {first_word(process)}" for process in alive]
            for process in alive:
                killed(process)
            return names, waited_s
        time.sleep(1)


def experiment(here: World, options: argparse.Namespace) -> bool:
    """Run it, print table and JSON, and say whether all is right."""
    started = time.monotonic()
    keys = put_shards(here.store, shards=options.shards, rows=options.rows)
    reference = undisturbed(here, "reference", keys)
    verdicts: list[Verdict] = []
    roots: list[DisturbedRoot] = []
    for disturbed in disturbed_roots(here, random.Random(options.seed), options.kills):
        roots.append(disturbed)
        verdicts.append(judge(disturbed, reference))
        print(table(verdicts[-1:]), *verdicts[-1].failures, sep="\n", file=sys.stderr)
    left, waited_s = left_behind(here.families, LEFT_S)
    fell = {kind: sum(verdict.disturbances[kind] for verdict in verdicts) for kind in KINDS}
    passed = sum(fell.values()) >= options.kills and not left and not any(v.failures for v in verdicts)
    report = {"passed": passed, "seed": options.seed, "shards": options.shards, "rows": len(keys)}
    report |= {"disturbances": sum(fell.values()), "by_kind": fell, "runs": sum(v.runs for v in verdicts)}
    report |= {"read_again": sum(v.read_again for v in verdicts), "reference_digest": reference.digest}
    report |= {"processes_left": left, "gone_after_s": round(waited_s, 1)}
    report |= {"seconds": round(time.monotonic() - started, 1), "roots": [asdict(verdict) for verdict in verdicts]}
    report["fell"] = [{"root": root.root, **asdict(fell)} for root in roots for fell in root.fell]
    print(table(verdicts), f"disturbances {fell}; passed {passed}", sep="\n", file=sys.stderr)
    print(json.dumps(report))
    return passed


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options and run the experiment."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.embed_s3", description="disturb embedding on S3")
    parser.add_argument("--kills", type=int, default=50, help="disturbances that must count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="logs and caches; kept (default: a temporary folder, removed)")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--rows", type=int, default=600, help="per shard")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlcd-chaos-"))
    with world(folder) as here:
        passed = experiment(here, options)
    if not options.folder:
        shutil.rmtree(folder)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
