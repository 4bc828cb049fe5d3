"""Splits and classes of the images in a folder, for common layouts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distill.errors import InputError, clipped
from distill.folder_classes import Layout, numbered
from distill.image_files import holds_images, images_under, is_image, named, subfolders
from distill.label_tables import SPLITS, Places, Row, is_table, read_annotations, read_table, split_of

# Names of folders that are not classes.
_CONTAINERS = ("images", "image", "imgs", "img", "jpegimages", "jpg", "jpeg", "jpegs", "png", "photos", "pictures", "files", "data")
_MAX_WRAPPERS = 4
_WRITE = (
    "write PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE, or PATH/CLASS/IMAGE, or PATH/labels.csv with a line filename,label for each "
    "image (docs/extend.md)"
)


def read_layout(path: Path, what: str) -> Layout:
    """Recognise the layout of a folder of images.

    Supported: class folders; splits (train, test, val in common spellings) of class folders or of images with a table of labels; one
    folder of images with such a table; Tiny-ImageNet as downloaded; any of these inside up to four folders with no other content.

    Args:
        path: the folder.
        what: begins the messages of errors.

    Raises:
        InputError: for any other layout; the message names what is there and a supported layout.
    """
    notes: list[str] = []
    top = _inside(path)
    if top != path:
        notes.append(f"the images are in {top}.")
    if splits := _splits(top, what):
        labelled = _split_folders(top, splits, what, notes)
    elif _tables(top) and (rows := _labelled(top, [top], what, notes)):
        labelled = _by_part(rows, what)
        if "train" not in labelled:
            raise InputError(
                f"{what}: {named(_tables(top))} has labels for {', '.join(labelled)} only and none for train; name the table labels.csv, "
                "or write train in its split column."
            )
        _note_unlisted(top, labelled, notes)
        folders = [folder for folder in _holders(top) if folder.name.casefold() not in _CONTAINERS]
        if len(folders) > 1:
            notes.append(f"labels are those of {named(_tables(top))}, whatever the folders are called ({named(folders)}).")
    else:
        _check_class_folders(top, what)
        labelled = {"train": _class_files(top, notes)}
    return numbered(top, labelled, what, notes)


def _inside(path: Path) -> Path:
    """The folder with the data: ``path``, or the only folder in it with images, if that is not a class."""
    top = path
    for _ in range(_MAX_WRAPPERS):
        inner = _holders(top)
        if len(inner) != 1 or split_of(inner[0].name) or _tables(top) or any(map(is_image, top.iterdir())) or not _is_wrapper(inner[0]):
            break
        top = inner[0]
    return top


def _is_wrapper(folder: Path) -> bool:
    inner = _holders(folder)
    if _tables(folder) or len(inner) > 1:
        return not any(map(is_image, folder.iterdir())) or bool(_tables(folder))
    return len(inner) == 1 and (split_of(inner[0].name) is not None or _is_wrapper(inner[0]))


def _holders(top: Path) -> list[Path]:
    return [folder for folder in subfolders(top) if holds_images(folder)]


def _tables(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if not path.name.startswith(".") and is_table(path))


def _splits(top: Path, what: str) -> dict[str, Path]:
    """The folders of the splits, "train" among them; empty if the folders are classes."""
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    inner = _holders(top)
    for folder in inner:
        if split := split_of(folder.name):
            groups.setdefault(split[1], {}).setdefault(split[0], []).append(folder)
    # seg_train and seg_test are splits; "test tube" and "train car" are classes.
    pairs = [group for rest, group in groups.items() if "train" in group and (not rest or len(group) > 1)]
    group = pairs[0] if pairs else groups.get((), {})
    for part, folders in group.items():
        if len(folders) > 1:
            raise InputError(f"{what}: {named(folders)} could both be the {part} split; rename one, or take it away.")
    splits = {part: group[part][0] for part in SPLITS if part in group}
    if "train" not in splits:
        deep = [folder for folder in splits.values() if _holders(folder)]
        if deep:
            raise InputError(f"{what}: has {named(deep)} but no train; name the training split's folder train, or give folder:{deep[0]}.")
        return {}
    alone = len(splits) == 1
    if alone and len(inner) > 1 and not _holders(splits["train"]) and not _tables(splits["train"]) and not _tables(top):
        return {}  # a class of trains among other classes
    return splits


def _split_folders(top: Path, splits: dict[str, Path], what: str, notes: list[str]) -> dict[str, list[tuple[Path, str]]]:
    """Files and class names of each split with labels, from class folders or else from tables."""
    others = [folder for folder in _holders(top) if folder not in splits.values()]
    if others:
        notes.append(f"{named(others)} next to {named(list(splits.values()))}: not read.")
    labelled: dict[str, list[tuple[Path, str]]] = {}
    flat: dict[str, Path] = {}
    for part, folder in splits.items():
        classes = _class_level(folder)
        if classes is None:
            flat[part] = folder
        else:
            labelled[part] = _class_files(classes, notes)
    if flat:
        # A table for a training split with class folders adds nothing.
        rows = [row for row in _labelled(top, [top, *flat.values()], what, notes) if "train" in flat or row.part in flat]
        labelled |= _by_part(rows, what) if rows else {}
        for part, folder in flat.items():
            if part in labelled:
                _note_unlisted(folder, labelled, notes)
    bare = [folder for part, folder in flat.items() if part not in labelled]
    if "train" not in labelled:
        raise InputError(f"{what}: {splits['train']} holds images but no class folders, and no table of labels is there; {_WRITE}.")
    if bare:
        notes.append(f"{named(bare)}: images without labels, not read.")
    if len(labelled) == 1 and "train" not in flat:
        state = f" with labels ({named(bare)} holds images alone)" if bare else ""
        raise InputError(
            f"{what}: has {splits['train'].name}/ but no test/ or val/{state}; add one, or give folder:{splits['train']} "
            "to have a fifth kept as test."
        )
    return labelled


def _class_level(folder: Path) -> Path | None:
    """The folder below a split whose folders are the classes; None if it has images without class folders."""
    inner = _holders(folder)
    if not inner:
        return None
    if len(inner) == 1 and (inner[0].name.casefold() in _CONTAINERS or split_of(inner[0].name)):
        return _class_level(inner[0])  # train/train/CLASS, test/images
    return folder


def _check_class_folders(top: Path, what: str) -> None:
    """Raises `InputError` for folders that are no classes."""
    inner = _holders(top)
    tables = "" if not _tables(top) else f" and {named(_tables(top))}, without columns of files and labels"
    if not inner:
        loose = any(map(is_image, top.iterdir()))
        if not loose and subfolders(top):
            raise InputError(f"{what}: its folders ({named(subfolders(top))}) hold no images; {_WRITE}.")
        state = f"holds images{tables}, but no class folders" if loose else f"has no class folders and no images{tables}"
        raise InputError(f"{what}: {top} {state}; {_WRITE}.")
    no_class = _CONTAINERS if len(inner) == 1 else _CONTAINERS[:4]
    plain = [folder for folder in inner if folder.name.casefold() in no_class]
    if plain:
        raise InputError(f"{what}: found {named(inner)}{tables}: {plain[0].name!r} is no class; {_WRITE}.")
    deep = [folder for folder in inner if not any(map(is_image, folder.iterdir()))]
    below = {folder: {inside.name for inside in _holders(folder)} - set(_CONTAINERS) for folder in deep}
    names = [names for names in below.values() if names]
    if names and all(split_of(name) for every in names for name in every):
        first = next(folder.name for folder, every in below.items() if every)
        raise InputError(f"{what}: the class folders hold the splits ({first}/{sorted(names[0])[0]}); {_WRITE}.")
    counts = Counter(name for every in names for name in every)
    if shared := sorted(name for name, count in counts.items() if count > 1):
        raise InputError(
            f"{what}: {named(list(below))} hold folders of the same names ({clipped(', '.join(shared))}), so it is not clear which are the "
            f"classes; give one of them, folder:{next(iter(below))}, or make one folder a class."
        )


def _class_files(top: Path, notes: list[str]) -> list[tuple[Path, str]]:
    """(image file, class name) of all class folders in ``top``."""
    pairs: list[tuple[Path, str]] = []
    empty, nested, links = [], [], [path for path in sorted(top.iterdir()) if path.is_symlink() and not path.exists()]
    for folder in subfolders(top):
        files, broken = images_under(folder)
        links += broken
        pairs += [(file, folder.name) for file in files]
        if not files:
            empty.append(folder)
        elif any(file.parent.parent != top and file.parent.name.casefold() not in _CONTAINERS for file in files):
            nested.append(folder)
    loose = sum(map(is_image, top.iterdir()))
    if empty:
        notes.append(f"{top}: class folders without images are left out: {named(empty)}.")
    if nested:
        notes.append(f"{top}: {named(nested)} hold folders; their images count as the outer folder's class.")
    if links:
        notes.append(f"{top}: {len(links)} links lead nowhere, or back to a folder above, and are left out: {named(links)}.")
    if loose:
        notes.append(f"{top}: {loose} images lie next to the class folders, have no class and are left out.")
    return pairs


def _labelled(top: Path, folders: Sequence[Path], what: str, notes: list[str]) -> list[Row]:
    """Rows of all tables of labels in these folders, and in their folders of images."""
    files, links = images_under(top)
    if links:
        notes.append(f"{top}: {len(links)} links lead nowhere, or back to a folder above, and are left out: {named(links)}.")
    places = Places(top, files)
    rows: dict[Path, list[Row]] = {}
    inner = [inside for folder in folders for inside in subfolders(folder) if inside.name.casefold() in _CONTAINERS]
    for folder in dict.fromkeys([*folders, *inner]):
        for table in _tables(folder):
            if (table_rows := read_table(table, places, what)) is not None:
                rows[table] = table_rows
        for table in sorted(folder.glob("*annotations.txt")):
            rows[table] = read_annotations(table, places, what)
    taken: dict[Path, Path] = {}
    for table, table_rows in rows.items():
        for row in table_rows:
            if taken.setdefault(row.file, table) != table:
                raise InputError(
                    f"{what}: both {named([taken[row.file], table])} have a label for {clipped(row.file.name)}; move one of them elsewhere."
                )
    return [row for table_rows in rows.values() for row in table_rows]


def _note_unlisted(folder: Path, labelled: dict[str, list[tuple[Path, str]]], notes: list[str]) -> None:
    listed = {file for files in labelled.values() for file, _ in files}
    files, _ = images_under(folder)
    if unlisted := len([file for file in files if file not in listed]):
        notes.append(f"{folder}: {unlisted} of {len(files)} images are in no table of labels and are left out.")


def _by_part(rows: Sequence[Row], what: str) -> dict[str, list[tuple[Path, str]]]:
    by_part: dict[str | None, list[tuple[Path, str]]] = {}
    for row in rows:
        by_part.setdefault(row.part, []).append((row.file, row.label))
    if None in by_part and len(by_part) > 1:
        others = ", ".join(sorted(part for part in by_part if part))
        raise InputError(
            f"{what}: {len(by_part[None])} labelled images are in no split and others are in {others}; give all of them a split (a column "
            "split with train, test or val), or none."
        )
    return {part or "train": sorted(files) for part, files in by_part.items()}
