"""COCO data sets."""

from boxquery.data.coco.layout import FOLDERS, find, find_deeper, looks_like_coco
from boxquery.data.coco.reader import read

__all__ = ["FOLDERS", "find", "find_deeper", "looks_like_coco", "read"]
