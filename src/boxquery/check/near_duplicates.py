"""Images that show the same without being the same file (compressed or resized again), and images of a single colour."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from boxquery.check.duplicates import title
from boxquery.check.findings import Finding, ImageRef
from boxquery.check.samples import evenly, small_image
from boxquery.data.dataset import Data, Split
from boxquery.errors import some

MOST = 1000  # images of a split that are looked at, evenly
SIDE = 64  # long side to which they are reduced
#: bits of 64 in which perceptual hashes may differ, and least correlation of 16 x 16 thumbnails
DISTANCE, CORRELATION = 4, 0.95
#: levels of 255 within which all pixels of a uniform image lie once it is reduced, and their standard deviation before: means hide noise
FLAT = 6
#: near-duplicates below which nothing is reported (they are counted in check.json, and change no figure); share of a split from which they
#: are a warning
FEWEST, MANY = 3, 0.05
_THUMB = 16
_SHOWN = 2


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnails:
    """Of the images of a split that could be read and are not uniform: indices [N], hashes uint64 [N], thumbnails [N, D] of mean 0 and
    length 1; ``uniform``: indices of the others."""

    indices: np.ndarray
    hashes: np.ndarray
    thumbs: np.ndarray
    uniform: list[int]


def thumbnails(data: Data) -> dict[str, Thumbnails]:
    """By split; none of rendered images, no two of which are alike."""
    found = {}
    for name, split in data.splits.items():
        if len(split) and split[0].path is not None:
            chosen = evenly(len(split), MOST)
            with ThreadPoolExecutor(4) as pool:
                images = list(pool.map(lambda i, split=split: small_image(split, i, SIDE), chosen))
            found[name] = _collect(split, [(i, image) for i, image in zip(chosen, images, strict=True) if image is not None])
    return found


def _collect(split: Split, images: list[tuple[int, Image.Image]]) -> Thumbnails:
    indices, hashes, thumbs, uniform = [], [], [], []
    for index, image in images:
        if _is_uniform(image) and np.asarray(split.read(index)).std((0, 1)).max() <= FLAT:
            uniform.append(index)
            continue
        grey = image.convert("L")
        thumb = np.asarray(grey.resize((_THUMB, _THUMB)), np.float64).ravel()
        thumb -= thumb.mean()
        indices.append(index)
        hashes.append(np.packbits(imagehash.phash(grey).hash.ravel()).view(np.uint64)[0])
        thumbs.append(thumb / max(float(np.linalg.norm(thumb)), 1e-6))
    return Thumbnails(np.array(indices, int), np.array(hashes, np.uint64), np.array(thumbs).reshape(-1, _THUMB**2), uniform)


def _is_uniform(image: Image.Image) -> bool:
    return all(high - low <= FLAT for low, high in image.getextrema())  # pyright: ignore[reportGeneralTypeIssues]


def check_near_duplicates(data: Data, seen: dict[str, Thumbnails], equal: list[list[ImageRef]]) -> tuple[dict[str, Any], list[Finding]]:
    """Counts by pair of splits, and what they mean. ``equal``: groups of the same content, which are told elsewhere."""
    shared = {ref: {split for split, _ in refs} for refs in equal for ref in refs}
    counts, findings = {}, []
    for first, second in combinations(seen, 2):
        a, b = seen[first], seen[second]
        near = np.bitwise_count(a.hashes[:, None] ^ b.hashes[None]) <= DISTANCE
        pairs: dict[ImageRef, ImageRef] = {}
        for i, j in np.argwhere(near):
            one, other = (first, int(a.indices[i])), (second, int(b.indices[j]))
            if a.thumbs[i] @ b.thumbs[j] >= CORRELATION and first not in shared.get(other, ()):
                pairs.setdefault(other, one)
        counts[f"{first} & {second}"] = len(pairs)
        if len(pairs) < FEWEST:
            continue
        titles = some((f"{title(data, other)} like {title(data, one)}" for other, one in pairs.items()), _SHOWN)
        many = len(pairs) > MANY * len(b.indices)
        findings.append(Finding(
            "near-duplicates", "warning" if many else "note",
            f"{len(pairs)} of {len(b.indices)} {second} images look the same as one of {first} ({titles}): "
            "the same photograph saved again, or frames of one scene; they tell little of new images.",
            "Keep such images in one split." if many else "", "strong" if many else "",
            tuple(ref for pair in list(pairs.items())[:_SHOWN] for ref in pair) if many else (),
        ))  # fmt: skip
    return counts, findings


def check_uniform(data: Data, seen: dict[str, Thumbnails]) -> list[Finding]:
    """Images of a single colour."""
    blank = [(name, index) for name, own in seen.items() for index in own.uniform]
    if not blank:
        return []
    labelled = sum(len(data.splits[name][index].boxes) > 0 for name, index in blank)
    total = sum(len(own.indices) + len(own.uniform) for own in seen.values())
    text = (
        f"{len(blank)} of {total} images are of a single colour ({some((title(data, ref) for ref in blank), _SHOWN)}), "
        f"{labelled} of them with boxes."
    )
    remedy = "Export these images again, or remove them." if labelled else ""
    return [Finding("uniform-images", "warning" if labelled else "note", text, remedy)]
