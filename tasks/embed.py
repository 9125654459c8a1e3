"""embed: every image to one normalised float16 vector; a unit is a span of a shard's row groups."""

from collections.abc import Mapping
from typing import Any

from mlcd_core.dataset import spans_of
from mlcd_core.identity import fingerprint, sha256_hex
from mlcd_core.runtimes import EmbedRuntime
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import Receipt, UnitTask
from tasks.embed_ledger import EmbedLedger, embed_metrics, embed_notes
from tasks.embed_worker import UnitEmbedder, reads_of
from tasks.run import Run
from tasks.units import run_units
from tasks.work import Committed, Job, Made, StageWork, settings

IN_FLIGHT = 2  # one unit is read and decoded while the other is on the device


def embed_work(run: Run, _committed: Committed) -> StageWork:
    """Describe the stage: one unit per span."""
    spec = resolved_embed_spec(run)
    _, runtime = settings(run, "embed")
    assert isinstance(runtime, EmbedRuntime)
    spans = spans_of(run.shards, spec.rows_per_unit)
    units = tuple(fingerprint([s.shard.digest, [s.first_row, s.first_row + s.rows]]) for s in spans)

    def make(job: Job) -> Made:
        ledger = EmbedLedger(run.shards, spans, units, runtime)
        ledger.check()
        done = _done(job, units)
        for unit, receipt in done.items():
            ledger.book(unit, receipt.parts[0].counts)

        def heard(task: UnitTask, values: Mapping[str, Any]) -> None:
            ledger.book(task.unit, values["counts"])

        pending = list({task.unit: task for task in job.plan.pending}.values())
        if pending:
            job.session.start()
            run_units(
                UnitEmbedder,
                {"root": run.files.uri(""), "spec": spec, "runtime": runtime},
                pending,
                [reads_of(spans[task.index]) for task in pending],
                workers=runtime.workers,
                report=job.report,
                in_flight=IN_FLIGHT,
                device=runtime.device,
                on_unit=heard,
            )
        made = job.folder.receipts([task.unit for task in pending], job.plan)
        done |= {receipt.unit: receipt for receipt in made}
        receipts = [done[unit] for unit in units]
        for receipt in receipts:
            ledger.book(receipt.unit, receipt.parts[0].counts)
        return Made(receipts, embed_metrics(spans, receipts), {**embed_notes(spans, receipts), "model": _model(spec)})

    rows = sum(shard.rows for shard in run.shards)
    return StageWork(spec=spec, inputs={"data": run.data_digest}, make=make, units=units, expected_rows=rows)


def resolved_embed_spec(run: Run) -> EmbedSpec:
    """The spec with the sha256 of the weights that ``embed.pretrained`` names, or of the vectors that are adopted.

    Raises ConfigError when ``embed.weights_sha256`` is given and is not theirs.
    """
    spec, runtime = settings(run, "embed")
    assert isinstance(spec, EmbedSpec)
    assert isinstance(runtime, EmbedRuntime)
    if spec.embedder == "adopted":
        from mlcd_core.images.adopted import adopted_digest

        digest = adopted_digest(runtime.vectors, expected=spec.weights_sha256)
        return spec.model_copy(update={"weights_sha256": digest})
    from mlcd_core.images.embedder import find_weights

    return spec.model_copy(update={"weights_sha256": sha256_hex(find_weights(spec, runtime.pretrained))})


def _done(job: Job, units: tuple[str, ...]) -> dict[str, Receipt]:
    finished = [unit for unit in dict.fromkeys(units) if unit in job.plan.done]
    return {receipt.unit: receipt for receipt in job.folder.receipts(finished, job.plan)} if finished else {}


def _model(spec: EmbedSpec) -> dict[str, str]:
    return {
        "embedder": spec.embedder,
        "architecture": spec.architecture,
        "weights_sha256": spec.weights_sha256,
        "precision": spec.precision,
    }
