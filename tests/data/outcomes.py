"""What became of a data set, for tests: its data, and all that was said."""

from boxquery.data.open import read
from boxquery.data.validation import validate


def outcome(root, given: int | None = None, **options):
    """What became of a data set: its data, and all that was said; every given box was kept or skipped."""
    raw = read(root, **options)
    data, report = validate(raw)
    kept = sum(len(record.boxes) for split in data.splits.values() for record in split)
    assert report.boxes_kept == kept
    assert kept + report.boxes_skipped == report.boxes_total
    assert given is None or report.boxes_total == given
    return data, "\n".join([*data.notes, *data.skipped])


def boxes(data):
    """Class names and corners of all objects, by the stem of the file."""
    return {
        record.path.stem: sorted(
            (data.names[label], *(round(float(v), 3) for v in box)) for label, box in zip(record.labels, record.boxes, strict=True)
        )
        for split in data.splits.values()
        for record in split
    }


def expected(images):
    return {picture.stem: sorted((thing.name, *map(float, thing.box)) for thing in picture.things) for picture in images}


def by_split(images):
    return {split: [p for p in images if p.split == split] for split in dict.fromkeys(p.split for p in images)}
