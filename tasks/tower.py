"""``embed.embedder=tower``: a tower trained here makes the embeddings, named by the digest of its train manifest.

The digest is looked up once, when the settings are read: it gives the architecture, the image size and the sha256 of
the weights to embed's spec, and the place of the weights file to its runtime. Whoever builds the embedder then needs
neither the manifest nor the root.
"""

from mlcd_core.config import Config
from mlcd_core.errors import ConfigError, CorruptRecordError
from mlcd_core.identity import short
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Files, Manifest, Part
from tasks.sealed import find_manifest, sealed_spec


def with_tower(config: Config, files: Files) -> Config:
    """The settings with everything that ``embed.tower`` stands for; those of other embedders as they are.

    Raises ConfigError for a digest that names no committed train, or keys of embed that do not fit that tower;
    CorruptRecordError when its weights are gone.
    """
    embed = config.embed
    if embed.embedder != "tower":
        if embed.tower:
            raise ConfigError(
                f"embed.tower={embed.tower} is set, but embed.embedder is {embed.embedder}, which reads no tower: "
                "set embed.embedder=tower, or leave embed.tower out"
            )
        return config
    manifest = find_manifest(files, "train", embed.tower, key="embed.tower")
    spec = TrainSpec.model_validate(sealed_spec(files, manifest)["spec"])
    weights = _weights_part(files, manifest, spec)
    found = {
        "tower": manifest.digest,
        "architecture": spec.tower,
        "weights_sha256": weights.sha256,
        "image_size": spec.image_size,
        "pretrained": files.uri(weights.path),
    }
    for field in ("architecture", "weights_sha256", "image_size", "pretrained"):
        given = getattr(embed, field)
        if given and given != found[field]:
            fix = found[field] if field == "image_size" else ""
            raise ConfigError(
                f"embed.{field} is {given}, but the tower {short(manifest.digest)} ({spec.tower}) has {found[field]}: "
                f"set embed.{field}={fix}"
            )
    return config.model_copy(update={"embed": embed.model_copy(update=found)})


def _weights_part(files: Files, manifest: Manifest, spec: TrainSpec) -> Part:
    from mlcd_core.train.checkpoint import tower_part_name

    name = tower_part_name(spec)
    [part] = [part for part in manifest.parts if part.name == name]
    sizes = {info.path: info.bytes for info in files.list(f"{manifest.stage}/{short(manifest.spec)}/data")}
    if sizes.get(part.path) != part.bytes:
        raise CorruptRecordError(
            f"embed.tower={short(manifest.digest)}: {files.uri(part.path)} has {sizes.get(part.path, 'no')} bytes, its "
            f"manifest says {part.bytes}; run the command that trained it again"
        )
    return part
