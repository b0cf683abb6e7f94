"""Pascal VOC data sets."""

from boxquery.data.voc.files import find, is_named_so
from boxquery.data.voc.reader import read

__all__ = ["find", "is_named_so", "read"]
