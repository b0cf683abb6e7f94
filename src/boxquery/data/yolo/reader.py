"""YOLO: one text file per image, one line per object: class, then centre x, centre y, width, height in 0..1, or a polygon's corners.

Layouts: a ``data.yaml`` with ``names`` and ``train``, ``val``, ``test`` (folders, images, lists of both, or text files of image paths);
darknet's ``obj.data``; folders named after splits, above or below ``images/`` and ``labels/``; lists ``train.txt``, ``val.txt``; or no
splits at all. The label file of ``.../images/.../a.jpg`` is ``.../labels/.../a.txt``, or beside the image, or in the one other folder whose
names fit. An image without a label file has no objects.
"""

from __future__ import annotations

import os
from pathlib import Path

from boxquery.data.find import ImageFinder, plain
from boxquery.data.folder import SPLITS, Folder, folders
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import NO_FILE, Fault, RawDataset, RawImage
from boxquery.data.yolo.label_files import TEXT, LabelFiles, holds_labels, is_label_file
from boxquery.data.yolo.lines import LabelLines, without_comments
from boxquery.data.yolo.settings import Settings, find_settings, read_settings
from boxquery.data.yolo.splits import ListedImage, SplitSource, splits_of_settings, unlisted
from boxquery.errors import UserError, count, some

_CLASSES = ("classes.txt", "obj.names", "labels/classes.txt")


def find(root: Path) -> Path | None:
    """The settings or class list of a folder in one of the layouts, or the folder itself if it has neither; None in no layout."""
    if (settings := find_settings(root)) is not None:
        return settings
    for name in _CLASSES:
        if (root / name).is_file():
            return root / name
    inner = {place: settings for place in folders(root) if Folder(root).holds(place) and (settings := find_settings(place))}
    if any(Folder(place).images(place) for place in inner):
        return None  # the data is there
    if not holds_labels(Folder(root)):
        return None
    return next(iter(inner.values())) if len(inner) == 1 else root


def read(root: Path, head: Path, *, images: Path | None = None, labels: Path | None = None) -> RawDataset:
    """What the label files say.

    Args:
        root: the data folder.
        head: what ``find`` found there.
        images: the folder of the images, which may be anywhere, where it is known; otherwise they are looked for in the data folder.
        labels: the folder of the label files, in the data folder, likewise.

    Raises:
        UserError: broken settings, no categories, no label files, no split that is there, a path that leaves the folder.
    """
    folder = Folder(root)
    root, head = folder.root, Path(os.path.abspath(head))
    settings = read_settings(folder, head)
    raw = RawDataset("yolo", [], [], {}, settings.notes)
    pictures = folder if images is None else Folder(images)
    finder = ImageFinder(pictures)
    splits = splits_of_settings(folder, pictures, finder, settings, raw)
    files = LabelFiles(folder, pictures, labels)
    splits = _with_unlisted(splits, unlisted(pictures, settings, splits), files, pictures, raw)
    files.pair(source.images.values() for source in splits.values())
    files.gather(source.images.values() for source in splits.values())
    splits = _splits_of_labels(splits, files, raw)
    groups = {split: [(image, files.of(image.path)) for image in source.images.values()] for split, source in splits.items()}
    orphans = files.orphans(splits)
    for split, group in groups.items():
        groups[split] = [(image, text or _of_missing(image, orphans[split])) for image, text in group]
    total, missing = sum(map(len, groups.values())), sum(text is None for group in groups.values() for _, text in group)
    if not total:
        _fail_without_images(folder, pictures)
    if total and missing == total:
        raise UserError(f"{root}: no label files for {total} images; they belong in labels/ beside images/, or beside the images")
    _fill(folder, raw, settings, groups, orphans)
    finder.finish(raw)
    raw.notes += [*files.notes(), *folder.notes()]
    if missing:
        bare = [f"all of {split}" for split, group in groups.items() if split and group and all(text is None for _, text in group)]
        which = f" ({', '.join(bare)})" if bare else ""
        raw.notes.append(f"{missing} of {total} images have no label file{which}: taken as images without objects")
    return raw


def _with_unlisted(
    splits: dict[str, SplitSource], others: dict[Path, tuple[str, SplitSource]], files: LabelFiles, pictures: Folder, raw: RawDataset
) -> dict[str, SplitSource]:
    """The splits, with those that the settings do not mention at all but whose folder of labelled images is beside theirs."""
    result = dict(splits)
    for place, (split, source) in others.items():
        if labelled := sum(files.of(path) is not None for path in source.images):
            taken = bool(split) and split not in result
            if taken:
                result[split] = source
            what = f"{pictures.show(place)} with {count(labelled, 'labelled image')} is not listed in the settings"
            raw.notes.append(f"{what}: {f'taken as {split}' if taken else 'left out'}")
    return {split: result[split] for split in SPLITS if split in result} if others else splits


def _splits_of_labels(splits: dict[str, SplitSource], files: LabelFiles, raw: RawDataset) -> dict[str, SplitSource]:
    """Where images have no splits, but all their label files are in folders named after some, these; images without labels train."""
    if list(splits) != [""]:
        return splits
    texts = {path: files.of(path) for path in splits[""].images}
    names = {files.split_of(text) for text in texts.values() if text is not None}
    if None in names or len(names) < 2 or "train" not in names:
        return splits
    result = {split: SplitSource(folders=splits[""].folders) for split in SPLITS if split in names}
    for path, image in splits[""].images.items():
        text = texts[path]
        result[(text and files.split_of(text)) or "train"].images[path] = image
    raw.notes.append(f"the splits are those of the folders of the labels: {', '.join(result)}")
    return result


def _of_missing(image: ListedImage, orphans: list[tuple[Path, str]]) -> Path | None:
    """The label file without image of an image that is listed but missing; it is taken from the others."""
    if not image.path.is_file():
        for i, (text, _) in enumerate(orphans):
            if plain(text.stem) == plain(image.path.stem):
                return orphans.pop(i)[0]
    return None


def _fill(
    folder: Folder,
    raw: RawDataset,
    settings: Settings,
    groups: dict[str, list[tuple[ListedImage, Path | None]]],
    orphans: dict[str, list[tuple[Path, str]]],
) -> None:
    """Read the label files: names, ids, splits and notes of the data set."""
    used = {text for group in groups.values() for _, text in group if text is not None}
    texts, faults = dict[Path, list[tuple[str, str]]](), dict[Path, Fault]()
    comments: list[str] = []
    for text in sorted(used | {text for group in orphans.values() for text, _ in group}):
        folder.check_link(text, folder.show(text))
        try:
            content = folder.lines(text)
        except UserError as error:
            texts[text], faults[text] = [], Fault("label file cannot be read", str(error), "repair or remove these files")
            continue
        texts[text] = without_comments(content)
        comments += (
            [where for where, line in content if (where, line) not in texts[text]] if any("#" in line for _, line in content) else []
        )
    lines = LabelLines(settings.names, settings.keypoints)
    for content in texts.values():
        lines.add(content)
    if not lines.names:
        lines.use_found_names()
        if not lines.names:
            raise UserError(f"{folder.root}: no categories; list them under 'names' in data.yaml, or one a line in classes.txt")
        shown = some(lines.names.values())
        raw.notes.append(
            f"no list of class names: the labels' own classes are used ({shown}); write their names into classes.txt, one a line"
        )
    raw.ids = sorted(lines.names)
    raw.names = [lines.names[i] for i in raw.ids]
    for split, group in groups.items():
        raw.splits[split] = images = []
        for image, text in group:
            objects = [] if text is None else lines.objects(texts[text])
            fault = None if text is None else faults.get(text)
            images.append(RawImage(image.id, image.path, image.where, None, objects, relative=not lines.in_pixels, fault=fault))
        for text, why in orphans.get(split, ()):
            where, objects = folder.show(text), lines.objects(texts[text])
            images.append(RawImage(where, None, where, None, objects, relative=not lines.in_pixels, fault=Fault(NO_FILE, why)))
    raw.notes += lines.notes()
    if comments:
        have = "line has a comment" if len(comments) == 1 else "lines have comments"
        raw.notes.append(f"{len(comments):,} label {have} behind '#', left out (first: {comments[0]})")


def _fail_without_images(folder: Folder, pictures: Folder) -> None:
    """Raises ``UserError`` where there are label files, but no image in the whole folder."""
    labels = sum(is_label_file(folder, path) for path in folder.files(folder.root, TEXT))
    if labels and not pictures.images(pictures.root):
        endings = ", ".join(sorted(IMAGE_SUFFIXES)[:8])
        raise UserError(
            f"{folder.root}: {count(labels, 'label file')}, but no images ({endings}, ...); put them into images/ beside labels/"
        )
