"""All checks of a data set for a plan, as values: what the data is, what was found, the preview. ``train`` starts with them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from boxquery.augment import Augment
from boxquery.check.box_fit import check_fit, measure_fit
from boxquery.check.boxes import check_boxes
from boxquery.check.colours import check_colours, compare_colours
from boxquery.check.duplicates import check_duplicates, equal_images
from boxquery.check.feasibility import FeasibilityPlan, check_mixing, check_objects, check_steps
from boxquery.check.findings import Finding
from boxquery.check.labels import check_labels, compare_labels
from boxquery.check.near_duplicates import check_near_duplicates, check_uniform, thumbnails
from boxquery.check.preview import draw_augmented, draw_picture
from boxquery.check.samples import SampledImage, sample_images
from boxquery.check.splits import check_counts
from boxquery.data.dataset import Data
from boxquery.data.transforms import TrainTransform
from boxquery.errors import CheckFailed
from boxquery.files import atomic_write, write_json
from boxquery.report.run_files import data_facts

FILE, PICTURE, AUGMENTED = "check.json", "check.png", "augmented.png"
_ORDER = {"error": 0, "warning": 1, "note": 2}
#: findings that only follow from boxes read in a wrong format
_WRONG_FORMAT = {"boxes-of-another-format", "boxes-normalised", "boxes-normalised-twice", "boxes-in-pixels"}
_FOLLOWING = {
    "boxes-moved",
    "images-do-not-belong",
    "objects-below-a-cell",
    "boxes-in-a-corner",
    "same-box-everywhere",
    "boxes-listed-twice",
}


@dataclass
class CheckResult:
    """The result of a check.

    Attributes:
        facts: ``data``: ``data_facts``; ``feasibility``: sizes and numbers of objects at the training resolution; ``equal_images``: counts;
            ``near_duplicates``: counts; ``pixels``: what the pixels were found to show, by split.
        findings: errors first.
        picture: images with boxes, as the network will see them and as findings speak of them, if it was drawn.
        folder: where it was written.
        seconds: how long it took.
        augmented: images beside what augmentation makes of them, if that was asked for.
        overfit: the result of ``--overfit``, if it was asked for.
    """

    facts: dict[str, Any]
    findings: list[Finding]
    picture: Image.Image | None
    seconds: float
    augmented: Image.Image | None = None
    overfit: dict[str, Any] | None = None
    folder: Path | None = None

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def status(self) -> int:
        """The command's exit status."""
        return 1 if self.errors else 0

    def add(self, findings: Iterable[Finding]) -> None:
        self.findings = sorted([*self.findings, *findings], key=lambda finding: _ORDER[finding.level])

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": self.status, **self.facts, "findings": [finding.values() for finding in self.findings],
            "overfit": self.overfit, "seconds": round(self.seconds, 2), "picture": PICTURE if self.picture is not None else None,
            "augmented": AUGMENTED if self.augmented is not None else None,
            "folder": None if self.folder is None else str(self.folder),
        }  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """Write ``check.json`` and the pictures that were drawn; the files that were written."""
        self.folder, files = folder, [folder / FILE]
        for name, image in ((PICTURE, self.picture), (AUGMENTED, self.augmented)):
            if image is not None:
                stream = io.BytesIO()
                image.save(stream, "PNG", compress_level=3)  # half the time of the default, a tenth larger
                files.append(atomic_write(folder / name, stream.getvalue()))
        write_json(folder / FILE, self.values())
        return files

    def lines(self) -> list[tuple[str, str]]:
        """Level and line of every finding; they name the picture where it was written."""
        picture = None if self.folder is None or self.picture is None else self.folder / PICTURE
        return [(finding.level, finding.line(picture)) for finding in self.findings]

    def raise_if_failed(self) -> None:
        """Raises ``CheckFailed`` with every error."""
        if self.errors:
            reasons = " ".join(f"{finding.text} {finding.remedy}".strip() for finding in self.errors)
            raise CheckFailed(f"check failed: {reasons} (--force trains anyway)")


def run_checks(
    data: Data, findings: Sequence[Finding], plan: FeasibilityPlan, augment: Augment, *,
    seed: int = 0, picture: Literal["always", "if needed", "never"] = "always", preview: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> CheckResult:  # fmt: skip
    """Check a data set for a plan; nothing is written.

    Args:
        findings: from ``open_checked``: what the raw files showed.
        plan: without ``steps`` what depends on them is left to ``check_steps``.
        augment, seed: of the run, for the picture.
        picture: whether it is drawn; "if needed": if a finding speaks of images.
        preview: whether to draw images beside what augmentation makes of them.
        progress: gets what is being done, how much is done and how much there is.
    """
    started = time.monotonic()
    progress("boxes", 0, 1)
    facts = data_facts(data)
    feasibility, more = check_objects(data, plan)
    findings = [
        *findings,
        *more,
        *check_mixing(data, plan, augment),
        *check_counts(data, facts),
        *check_boxes(data),
        *(check_steps(plan) if plan.steps else ()),
    ]
    progress("equal images", 0, 1)
    paths = {name: [record.path for record in split] if len(split) and split[0].path else [] for name, split in data.splits.items()}
    groups = equal_images(paths, lambda done, total: progress("equal images", done, total))
    equal, more = check_duplicates(data, groups)
    findings += more
    progress("near-duplicates", 0, 1)
    seen = thumbnails(data)
    near, more = check_near_duplicates(data, seen, groups)
    findings += [*more, *check_uniform(data, seen)]
    samples = {}
    for number, (name, split) in enumerate(data.splits.items()):
        progress("pixels", number, len(data.splits))
        samples[name] = sample_images(split)
    pixels, more = check_pixels(samples, data.names)
    findings += more
    if _WRONG_FORMAT & {finding.name for finding in findings}:
        findings = [finding for finding in findings if finding.name not in _FOLLOWING]
    wanted = picture == "always" or (picture == "if needed" and any(finding.images for finding in findings))
    transform = TrainTransform(plan.preprocessing, augment, most_objects=plan.queries)
    drawn = draw_picture(data, transform, seed, findings) if wanted else None
    augmented = draw_augmented(data, transform, seed) if preview else None
    own = {"data": facts, "feasibility": feasibility, "equal_images": equal, "near_duplicates": near, "pixels": pixels}
    result = CheckResult(own, [], drawn, 0.0, augmented)
    result.add(findings)
    result.seconds = time.monotonic() - started
    return result


def check_pixels(samples: dict[str, list[SampledImage]], names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """What samples of the splits show, by split, and what it means."""
    facts, found, train = {}, [], samples["train"]
    for name, sample in samples.items():
        facts[name] = {}
        if (fit := measure_fit(sample)) is not None:
            facts[name]["boxes"] = asdict(fit)
            found.append(check_fit(name, sample, fit))
        if name == "train" or not sample or not train:
            continue
        if (labels := compare_labels(train, sample)) is not None:
            facts[name]["labels"] = asdict(labels)
            found.append(check_labels(train, sample, name, names, labels))
        if (colours := compare_colours(train, sample)) is not None:
            facts[name]["colours"] = asdict(colours)
            found.append(check_colours(train, sample, name, colours))
    return facts, [finding for finding in found if finding is not None]
