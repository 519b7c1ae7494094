"""A folder of images with one CSV or JSON of image-level labels; masks and lists are optional.

Images lie in the root or in `images/`, masks as `masks/NAME.png`; lists come from `train.txt`,
`val.txt` and the like, else from the label file's `split`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import DataError
from ...runtime.io.image_labels import LabelEntry, LabelTable, read_label_table
from .class_list import class_indices, given_classes, ordered_classes, read_lines
from .files import (
    assemble,
    check_name,
    image_name,
    images_folder,
    is_split_name,
    list_images,
    mask_file,
    note_stray_masks,
    split_name,
)
from .findings import Findings
from .image_set import ImageSet, Sample


def find_label_file(root: Path) -> Path | None:
    """The label file of a folder: `labels.csv` or `labels.json`, else the only CSV or JSON.

    Raises:
        DataError: several, none of which is called so.
    """
    for folder in (root, root / "images"):
        found = sorted(
            path
            for path in folder.glob("*")
            if path.suffix.lower() in (".csv", ".json") and not path.name.startswith(".")
        )
        named = [path for path in found if path.stem.lower() == "labels"]
        chosen = named or found
        if len(chosen) > 1:
            raise DataError(
                f"'{folder}' has the label files {', '.join(path.name for path in chosen)}: keep "
                "one, or call it labels.csv"
            )
        if chosen:
            return chosen[0]
    return None


def read_labelled_folder(
    root: Path, label_file: Path, classes: Sequence[str] | None, findings: Findings
) -> ImageSet:
    """The images of a folder with the labels of a file; every image must be in it."""
    folder = images_folder(root)
    images = list_images(folder, skip=("masks",) if folder == root else ())
    if not images:
        raise DataError(f"'{folder}' has no images: '{label_file.name}' alone is no image set")
    fixed = given_classes(dict.fromkeys((root, folder)), classes)
    table = read_label_table(label_file, classes=fixed)
    prefix = "" if folder == root else f"{folder.name}/"
    where = f"label file '{label_file}'"
    keys = _match(table, images, prefix, where, findings)
    known = fixed or ordered_classes(table.class_names)
    splits = _splits(root, table, images, keys, prefix, findings)
    samples = []
    for relative, path in images.items():
        name, key = image_name(relative), keys.get(relative)
        entry = None if key is None else table.entries[key]
        if entry is None:
            findings.fault(
                "unlabelled image",
                name,
                f"{where} does not mention image '{relative}': add it with an empty entry if it "
                "shows background only",
            )
        labels = None if entry is None else class_indices(entry.labels, known, name, findings)
        mask = mask_file(root / "masks", name, len(known))
        source = entry.source if entry else None
        samples.append(Sample(name, path, labels, splits[relative], mask, source))
    note_stray_masks(root / "masks", [sample.name for sample in samples], findings)
    return assemble(root, f"images and {label_file.name}", known, samples, findings)


def _match(
    table: LabelTable, images: Mapping[str, Path], prefix: str, where: str, findings: Findings
) -> dict[str, str]:
    """Key of each image that the table mentions, relative to the images' folder or to the root."""
    keys: dict[str, str] = {}
    for relative in images:
        try:
            found = table.find_key(relative) or table.find_key(prefix + relative)
        except DataError as error:
            findings.fault("unreadable labels", relative, str(error))
            continue
        if found is not None:
            keys[relative] = found
    # `a` and `a.jpg` may both stand there and agree; only one of them is a key then.
    used = {image_name(key) for key in keys.values()}
    for key in table.entries:
        if image_name(key) not in used and check_name(key, where, findings):
            findings.fault(
                "label without image",
                key,
                f"{where} mentions image '{key}', which does not exist: add the image or take "
                "the entry out",
            )
    return keys


def _splits(
    root: Path,
    table: LabelTable,
    images: Mapping[str, Path],
    keys: Mapping[str, str],
    prefix: str,
    findings: Findings,
) -> dict[str, tuple[str, ...]]:
    """Lists of each image: text files where there are any, else the label file's split."""
    lists = [path for path in sorted(root.glob("*.txt")) if is_split_name(path.stem)]
    splits: dict[str, tuple[str, ...]] = {}
    if lists:
        members = {path: _list_members(path, images, prefix, findings) for path in lists}
        for relative in images:
            splits[relative] = tuple(
                split_name(path.stem) for path in lists if relative in members[path]
            )
    else:
        for relative in images:
            split = table.entries[keys[relative]].split if relative in keys else None
            splits[relative] = (split_name(split),) if split else ()
    outside = [relative for relative, names in splits.items() if not names]
    if outside and len(outside) < len(images):
        findings.note(
            "image in no list",
            outside[0],
            f"{len(outside)} of {len(images)} images are in no list and are not used, for "
            f"example '{outside[0]}'",
        )
    return splits


def _list_members(
    path: Path, images: Mapping[str, Path], prefix: str, findings: Findings
) -> frozenset[str]:
    names = LabelTable(path, {line: LabelEntry(()) for line in read_lines(path)})
    return frozenset(_match(names, images, prefix, f"list '{path}'", findings))
