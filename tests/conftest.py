"""One thread a worker (the suite runs in parallel), no network, and the reference material where there is any."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.devnull  # what a developer has downloaded is nothing to start from here
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).parents[1]


def shared_root() -> Path:
    """The folder with reference numbers and real data: BOXQUERY_SHARED, or ``shared`` beside the repository."""
    return Path(os.environ.get("BOXQUERY_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_root()
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder.name}/ beside the repository (or BOXQUERY_SHARED)")
    return folder
