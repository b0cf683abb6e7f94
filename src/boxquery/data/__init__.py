"""Data sets: ``read`` what the files say, ``validate`` it; ``open_data`` does both. Only ``transforms`` and ``loading`` need torch."""

from boxquery.data.dataset import Data, Record, Split
from boxquery.data.open import open_data, read
from boxquery.data.validation import validate

__all__ = ["Data", "Record", "Split", "open_data", "read", "validate"]
