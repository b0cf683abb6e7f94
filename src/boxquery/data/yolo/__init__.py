"""YOLO data sets."""

from boxquery.data.yolo.label_files import holds_labels
from boxquery.data.yolo.reader import find, read

__all__ = ["find", "holds_labels", "read"]
