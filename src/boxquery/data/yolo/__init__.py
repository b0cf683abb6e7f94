"""YOLO data sets."""

from boxquery.data.yolo.reader import find, read

__all__ = ["find", "read"]
