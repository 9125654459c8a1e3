"""Whether vectors that were made elsewhere fit the data of a run, before anything is started."""

from mlcd_core.dataset import Shard
from mlcd_core.dataset.columns import find_columns
from mlcd_core.dataset.source import open_source
from mlcd_core.errors import DataError
from mlcd_core.images.adopted import AdoptedSource, check_adopted
from mlcd_core.runtimes import EmbedRuntime
from mlcd_core.specs import EmbedSpec
from tasks.run import Run
from tasks.work import settings


def check_adopted_run(run: Run) -> AdoptedSource | None:
    """What a run adopts, None when it embeds by itself. Reads headers, footers, and the keys of one row group.

    Raises ConfigError and DataError for vectors that do not fit together, or have no key in common with the data.
    """
    spec, runtime = settings(run, "embed")
    assert isinstance(spec, EmbedSpec)
    assert isinstance(runtime, EmbedRuntime)
    if spec.embedder != "adopted":
        return None
    shard = next((shard for shard in run.shards if shard.rows), None)
    keys = _first_keys(shard, spec) if shard else []
    return check_adopted(runtime.vectors, key_column=spec.key_column, keys=keys)


def adopted_text(source: AdoptedSource) -> str:
    """One line for people."""
    lowest, highest = source.norms
    return (
        f"adopting {source.rows:,} vectors of {source.dim:,} dims, lengths {lowest:.4g} to {highest:.4g} in a sample "
        "(they are normalised)"
    )


def _first_keys(shard: Shard, spec: EmbedSpec) -> list[str]:
    """Those of the first row group that has rows."""
    source = open_source(shard)
    schema = source.parquet.schema_arrow
    key = find_columns(schema, shard.uri, image=spec.image_column, key=spec.key_column, label="", caption="").key
    if key is None:
        raise DataError(
            f"{shard.uri} has no column {spec.key_column!r}, by which vectors are found; its columns are "
            f"{', '.join(schema.names)}: name one of them with --set embed.key_column=NAME"
        )
    group = next(number for number, rows in enumerate(shard.row_groups) if rows)
    [keys] = [source.parquet.read_row_group(g, columns=[key])[key] for g in source.fetched([group], [key])]
    return [str(value) for value in keys.to_pylist() if value is not None]
