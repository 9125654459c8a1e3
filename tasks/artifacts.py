"""What the Prefect UI shows of a stage: one markdown artifact with a fixed key, so that runs can be compared over time.

Pictures are small PNGs inside the markdown. Showing is best effort: work that is committed is not undone because a
server did not take its picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact

from mlcd_core.charts import curves_png, data_uri, histogram_png
from mlcd_core.errors import MlcdError
from mlcd_core.identity import short
from mlcd_core.store import Manifest
from tasks.contact_sheets import cluster_sheet
from tasks.reporting import show_best_effort, stage_logger
from tasks.run import Run
from tasks.tables import cluster_table, failed_units_table, iterations_table, metrics_table
from tasks.work import UPSTREAM

RESULT_STYLES = {
    "cached": "fill:#d8f0dd,stroke:#2e7d4f,color:#000",
    "ran": "fill:#d6e6f7,stroke:#0072b2,color:#000",
    "failed": "fill:#fbd9d3,stroke:#d55e00,color:#000",
    "skipped": "fill:#eeeeee,stroke:#999999,color:#000",
}


def publish_stage_artifact(record: dict[str, Any], manifest: Manifest, run: Run) -> None:
    """Create the artifact ``mlcd-{stage}`` of the current run."""
    sheet = _cluster_sheet(run, manifest) if manifest.stage == "label" and record["result"] != "cached" else None
    text = stage_markdown(record, manifest, sheet)
    _publish(text, f"mlcd-{manifest.stage}")


def stage_markdown(record: dict[str, Any], manifest: Manifest, sheet: bytes | None = None) -> str:
    """The stage's result as markdown: where it lies, what it counts, and its pictures; of label, the sheet (PNG)."""
    rows = [
        ("result", record["result"]),
        *([("rows", f"{manifest.rows:,}, of them usable {manifest.usable:,}")] if manifest.rows else []),
        ("units run", record["units_run"]),
        ("seconds", record["seconds"]),
        ("spec", manifest.spec),
        ("digest", manifest.digest),
        ("where", record["uri"]),
    ]
    head = f"# {manifest.stage}\n\n" + markdown_table(["", ""], rows)
    if record["result"] == "cached":
        return head  # the pictures are with the run that made the stage
    return "\n\n".join([head, *_pictures(manifest), *(_sheet_pictures(sheet) if sheet else [])])


def sizes_picture(cluster: Manifest) -> str:
    """The histogram of the sizes of the clusters, as markdown."""
    every_size = [size for size, clusters in cluster.metrics["sizes"] for _ in range(clusters)]
    return _picture("cluster sizes", histogram_png(every_size, title="Rows per cluster", x_label="rows in the cluster"))


def publish_run_artifact(summary: Mapping[str, Any]) -> None:
    """Create the artifact ``mlcd-run`` of the current flow run: what each stage did, and what hangs on what."""
    _publish(run_markdown(summary["stages"]), "mlcd-run")


def publish_plan_artifact(text: str) -> None:
    """Create the artifact ``mlcd-plan`` of the current flow run from what the command prints."""
    _publish(f"# plan\n\n```\n{text}\n```\n", "mlcd-plan")


def _publish(text: str, key: str) -> None:
    def show() -> None:
        create_markdown_artifact(text, key=key)

    show_best_effort(f"the artifact {key}", show)


def run_markdown(stages: Sequence[Mapping[str, Any]]) -> str:
    """All stages of all rounds as a table, and their lineage, which the newer of Prefect's two UIs draws."""
    rows = [
        (
            *([stage["round"]] if stages[-1]["round"] > 1 else []),
            stage["stage"],
            stage["result"],
            stage["units_run"],
            f"{stage['seconds']:.1f}",
            f"{stage['rows']:,}" if stage["rows"] else "-",
            short(stage["manifest_digest"]) if stage["manifest_digest"] else "-",
            stage["error"] or stage["note"],
        )
        for stage in stages
    ]
    header = [*(["round"] if stages[-1]["round"] > 1 else [])]
    header += ["stage", "result", "units run", "seconds", "rows", "digest", ""]
    return "\n\n".join(["# run", markdown_table(header, rows), f"```mermaid\n{_lineage(stages)}\n```"])


def _lineage(stages: Sequence[Mapping[str, Any]]) -> str:
    """A flowchart: each stage with its result and digest, and arrows from what it reads."""
    names = {(stage["round"], stage["stage"]): f"{stage['stage']}{stage['round']}" for stage in stages}
    lines = ["flowchart LR"]
    for stage in stages:
        digest = f"<br/>{short(stage['manifest_digest'])}" if stage["manifest_digest"] else ""
        name = names[stage["round"], stage["stage"]]
        lines.append(f'  {name}["{stage["stage"]}<br/>{stage["result"]}{digest}"]:::{stage["result"]}')
        lines += [f"  {names[stage['round'], upstream]} --> {name}" for upstream in UPSTREAM[stage["stage"]]]
        if stage["stage"] == "embed" and stage["round"] > 1:
            lines.append(f"  {names[stage['round'] - 1, 'train']} --> {name}")
    return "\n".join([*lines, *(f"  classDef {result} {style}" for result, style in RESULT_STYLES.items())])


def markdown_table(header: list[str], rows: Sequence[tuple[Any, ...]]) -> str:
    """A GitHub-flavoured markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _pictures(manifest: Manifest) -> list[str]:
    metrics = manifest.metrics
    if manifest.stage == "embed":
        return _embed_tables(manifest)
    if manifest.stage == "cluster":
        objective = curves_png(
            {"objective": list(enumerate(metrics["objective"], start=1))},
            title="k-means objective",
            x_label="iteration",
            y_label="mean of 1 - cos",
        )
        iterations = markdown_table(*iterations_table(metrics))
        return [
            markdown_table(["", ""], cluster_table(manifest)),
            sizes_picture(manifest),
            _picture("objective", objective),
            f"<details><summary>iterations</summary>\n\n{iterations}\n\n</details>",
        ]
    if manifest.stage == "train":
        curve = metrics["curve"]
        pictures = [
            _curves(curve, ("loss",), "Loss"),
            _curves(curve, ("learning_rate",), "Learning rate"),
            _curves(curve, ("positive_cosine", "negative_cosine"), "Mean cosine"),
            _curves(curve, ("effective_rank",), "Effective rank of the features"),
            _curves(curve, ("images_per_s",), "Images per second"),
        ]
        return [markdown_table(["", ""], _train_rows(manifest)), *pictures]
    if manifest.stage == "evaluate":
        header, rows = metrics_table(metrics["scores"])
        return [markdown_table(header, rows)] if rows else ["No labels were given: cluster evidence only."]
    return []


def _cluster_sheet(run: Run, label: Manifest) -> bytes | None:
    """What some clusters look like; an image that cannot be read now is no reason to fail what is committed."""
    try:
        return cluster_sheet(run, label)
    except MlcdError as error:
        stage_logger().warning("no pictures of clusters: %s", error)
        return None


def _sheet_pictures(sheet: bytes) -> list[str]:
    return ["Some clusters, a row each, the images nearest to the centroid first:", _picture("clusters", sheet)]


def _embed_tables(manifest: Manifest) -> list[str]:
    """On what it ran, rows by status, and the units that failed."""
    metrics = manifest.metrics
    head = [("embedded on", ", ".join(manifest.provenance["devices"]) or "-")]
    psnr = metrics.get("fast_decode_psnr")
    if psnr is not None:
        quality = f"PSNR {psnr['mean_db']:.1f} dB, worst {psnr['worst_db']:.1f} dB, of {psnr['images']:,} images"
        head.append(("fast decoding against exact", quality))
    status = [(name, f"{rows:,}") for name, rows in metrics["status"].items()]
    tables = [markdown_table(["", ""], head), markdown_table(["status", "rows"], status)]
    return tables + ([markdown_table(*failed_units_table(metrics))] if metrics["failed_units"] else [])


def _train_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Who trained, and the watches of the last record."""
    return [
        *(
            (f"workers to step {ran['to_step']:,}", f"{ran['world_size']} on {ran['device']}, {ran['threads']} threads")
            for ran in manifest.provenance["ran_on"]
        ),
        *((f"last {name}", f"{value:,.6g}") for name, value in manifest.metrics["curve"][-1].items()),
    ]


def _curves(curve: Sequence[Mapping[str, float]], names: Sequence[str], title: str) -> str:
    """One line per value over the steps; a record that lacks a value leaves it out."""
    series = {name: [(record["step"], record[name]) for record in curve if name in record] for name in names}
    return _picture(title.lower(), curves_png(series, title=title, x_label="step", y_label=""))


def _picture(title: str, png: bytes) -> str:
    return f"![{title}]({data_uri(png)})"
