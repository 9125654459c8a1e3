"""What a person named as sources: resolved, scanned, and of which kind they are.

    folder       images anywhere below a folder
    imagefolder  images in one folder per class: class/x.jpg
    webdataset   tars, the members of one sample side by side: 0001.jpg, 0001.txt

Names of files are relative to what all sources have in common, so that moved sources are the same sources.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.pack.keys import text_of
from mlcd_core.pack.options import Kind, KindOption
from mlcd_core.pack.scan import TAR_SUFFIX, Found, FoundFile, file_at, scan

SHOWN = 5


@dataclass(frozen=True)
class Sources:
    """``files`` to read, images or tars, in name order.

    ``classes`` of an imagefolder, in the order of their labels, and ``file_classes``: the class of each file. ``why``
    says how the kind was decided.
    """

    kind: Kind
    files: tuple[FoundFile, ...]
    classes: tuple[str, ...]
    file_classes: tuple[str, ...]
    ignored: dict[str, int]
    why: str


def find_sources(sources: Sequence[str], kind: KindOption) -> Sources:
    """List the sources: folders, tars, or patterns of them.

    Raises ConfigError for sources that cannot be meant, DataError for those that are not there or hold no images.
    """
    paths = [path for source in sources for path in _resolved(source)]
    _check_apart(paths)
    scanned = [_scanned(path) for path in paths]
    ignored = sum((source.found.ignored for source in scanned), Counter[str]())
    has_images, has_tars = any(s.found.images for s in scanned), any(s.found.tars for s in scanned)
    if not has_images and not has_tars:
        raise DataError(
            f"no images and no tars in {_listed(sources)}; found {_counted(ignored) or 'no files'}; "
            "expected .jpg, .png, .webp, .gif, .bmp, .tif or .tar files"
        )
    if kind == "auto" and has_images and has_tars:
        raise ConfigError(
            f"{_listed(sources)} holds images as well as tars; say which to pack: --kind folder or --kind webdataset"
        )
    if kind == "webdataset" or (kind == "auto" and has_tars):
        return _of_tars(scanned, ignored)
    return _of_images(scanned, kind, ignored)


@dataclass(frozen=True)
class _Scanned:
    """One source: what was found, with names relative to ``folder``."""

    folder: str
    found: Found


def _resolved(source: str) -> Iterator[Path]:
    """Absolute paths of the folders and tars that a source names."""
    if "://" in source:
        raise ConfigError(f"{source} is not on this machine; packing reads local files: copy it here first")
    matches = [Path(source)] if Path(source).exists() else [Path(path) for path in sorted(glob.glob(source))]
    if not matches:
        parent = Path(source).absolute().parent
        near = sorted(path.name for path in parent.iterdir())[:SHOWN] if parent.is_dir() else []
        beside = f"beside it: {', '.join(near)}" if near else f"the folder {parent} does not exist or is empty"
        raise DataError(f"nothing at {source}; {beside}; expected a folder, a .tar file or a quoted pattern")
    for path in matches:
        if not path.is_dir() and path.suffix.lower() != TAR_SUFFIX:
            raise DataError(
                f"{path} is neither a folder nor a .tar file; name the folder it lies in, and unpack a compressed tar"
            )
        yield path.resolve() if ".." in path.parts else path.absolute()


def _check_apart(paths: Sequence[Path]) -> None:
    """No source twice, and none inside another: its images would be packed twice."""
    real = [path.resolve() for path in paths]
    given = Counter(real)
    for path in real:
        outer = path if given[path] > 1 else next((parent for parent in path.parents if parent in given), None)
        if outer is not None:
            raise ConfigError(
                f"{path} is named twice or lies in {outer}; its images would be packed twice: name it once"
            )


def _scanned(path: Path) -> _Scanned:
    if path.is_dir():
        return _Scanned(str(path), scan(str(path)))
    return _Scanned(str(path.parent), Found([], [file_at(str(path), path.name)], Counter()))


def _prefixes(scanned: Sequence[_Scanned]) -> list[str]:
    """What stands before the names of each source's files, to make them relative to what all have in common."""
    base = os.path.commonpath([source.folder for source in scanned])
    return ["" if source.folder == base else os.path.relpath(source.folder, base) + "/" for source in scanned]


def _of_tars(scanned: Sequence[_Scanned], ignored: Counter[str]) -> Sources:
    tars = [
        tar._replace(name=prefix + tar.name)
        for prefix, source in zip(_prefixes(scanned), scanned, strict=True)
        for tar in source.found.tars
    ]
    if not tars:
        raise DataError(f"no .tar files below {scanned[0].folder}; for images in folders leave --kind webdataset out")
    ignored["images outside of tars"] += sum(len(source.found.images) for source in scanned)
    return Sources("webdataset", tuple(sorted(tars)), (), (), dict(+ignored), f"{len(tars):,} tars")


def _of_images(scanned: Sequence[_Scanned], kind: KindOption, ignored: Counter[str]) -> Sources:
    images: list[FoundFile] = []
    classes: list[str] = []
    is_tree = True
    for prefix, source in zip(_prefixes(scanned), scanned, strict=True):
        own = source.found.images
        images += [image._replace(name=prefix + image.name) for image in own] if prefix else own
        classes += [image.name.partition("/")[0] if "/" in image.name else "" for image in own]
        is_tree = is_tree and all(image.name.count("/") == 1 for image in own)
    ignored[TAR_SUFFIX] += sum(len(source.found.tars) for source in scanned)
    if not images:
        raise DataError(f"no images below {scanned[0].folder}; for tars leave --kind {kind} out")
    order = sorted(range(len(images)), key=lambda i: images[i].name)
    files, file_classes = tuple(images[i] for i in order), tuple(classes[i] for i in order)
    names = tuple(sorted(set(classes)))
    if kind == "imagefolder" or (kind == "auto" and is_tree and len(names) > 1):
        _check_classes(files, file_classes)
        shown = ", ".join(map(text_of, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
        why = f"{len(files):,} images in {len(names):,} class folders ({shown}); --kind folder packs without labels"
        return Sources("imagefolder", files, names, file_classes, dict(+ignored), why)
    return Sources("folder", files, (), (), dict(+ignored), f"{len(files):,} images")


def _check_classes(files: Sequence[FoundFile], classes: Sequence[str]) -> None:
    outside = next((file.name for file, name in zip(files, classes, strict=True) if not name), None)
    if outside is not None:
        raise DataError(f"{outside} lies in no class folder; move it into one, or pack with --kind folder")


def _listed(sources: Sequence[str]) -> str:
    return ", ".join(sources[:SHOWN]) + (f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else "")


def _counted(ignored: Counter[str]) -> str:
    return ", ".join(f"{count:,} {suffix}" for suffix, count in ignored.most_common(SHOWN))
