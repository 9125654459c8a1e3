"""Which columns of a shard hold what: image bytes, keys, labels, captions, and the state of a download.

Understood are img2dataset (``jpg``, ``png`` or ``webp``, ``key``, ``status``), Hugging Face (``image``: a struct of
``bytes`` and ``path``; class labels are plain ints), and columns that the user names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.dataset.footer import may_hold_values
from mlcd_core.errors import DataError, LabelDataError

IMAGE_COLUMNS = ("jpg", "png", "webp", "image")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, None for those that a shard does not have or nobody asked for.

    image_in_struct: the bytes are the field ``bytes`` of the image column.
    """

    image: str
    image_in_struct: bool
    key: str | None
    status: str | None
    label: str | None
    caption: str | None

    @property
    def read(self) -> list[str]:
        """What to ask Parquet for; of a struct the bytes alone."""
        image = f"{self.image}.bytes" if self.image_in_struct else self.image
        return [name for name in (image, self.key, self.status, self.label, self.caption) if name is not None]


def find_columns(schema: pa.Schema, uri: str, *, image: str, key: str, label: str, caption: str) -> Columns:
    """Look the columns up. Raises DataError, of labels LabelDataError, with the columns that there are."""
    found = _image_column(schema, image, uri)
    return Columns(
        image=found,
        image_in_struct=pa.types.is_struct(schema.field(found).type),
        key=key if key in schema.names else None,
        status="status" if "status" in schema.names and _is_text(schema.field("status").type) else None,
        label=_label_column(schema, label, uri) if label else None,
        caption=_caption_column(schema, caption, uri) if caption else None,
    )


def check_bytes_inside(metadata: pq.FileMetaData, columns: Columns, uri: str) -> None:
    """Raise DataError for a shard whose images are paths alone, by its statistics: no row of it could be read.

    A single row without bytes is a row without an image, whatever its path says.
    """
    if columns.image_in_struct and metadata.num_rows:
        stored, paths = (may_hold_values(metadata, f"{columns.image}.{field}") for field in ("bytes", "path"))
        if paths and not stored:
            raise DataError(
                f"the images of {uri} are paths alone, {columns.image}.bytes is null in every row; expected the bytes "
                "of the images: pack the files with mlcd pack, or write the shards with the bytes embedded"
            )


def _image_column(schema: pa.Schema, wanted: str, uri: str) -> str:
    holders = [field.name for field in schema if _holds_images(field.type)]
    candidates = IMAGE_COLUMNS if wanted == "auto" else (wanted,)
    for name in candidates:
        if name in holders:
            return name
    named = "jpg, png, webp or image" if wanted == "auto" else repr(wanted)
    raise DataError(f"no image column {named} in {uri}; its columns are {_described(schema)}; {_fix(holders)}")


def _fix(holders: Sequence[str]) -> str:
    if holders:
        return f"try --set embed.image_column={holders[0]}"
    return "no column holds bytes, or a struct with bytes: pack the images first"


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_binary(kind.field(at).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _label_column(schema: pa.Schema, wanted: str, uri: str) -> str:
    if wanted not in schema.names:
        raise LabelDataError(
            f"no label column {wanted!r} in {uri}; its columns are {_described(schema)}; "
            "name one of them with --label-column"
        )
    kind = schema.field(wanted).type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_integer(inner):
        raise LabelDataError(
            f"the label column {wanted!r} of {uri} holds {kind}; expected an int, or a list of ints, per row"
        )
    return wanted


def _caption_column(schema: pa.Schema, wanted: str, uri: str) -> str:
    if wanted not in schema.names or not _is_text(schema.field(wanted).type):
        raise DataError(
            f"no caption column {wanted!r} of strings in {uri}; its columns are {_described(schema)}; "
            "name one with --set embed.caption_column=NAME, or set embed.feature=image"
        )
    return wanted


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
