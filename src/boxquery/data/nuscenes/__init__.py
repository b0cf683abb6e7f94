"""nuScenes as it is downloaded, read with json, NumPy and Pillow alone."""

from boxquery.data.nuscenes.reader import read
from boxquery.data.nuscenes.tables import find

__all__ = ["find", "read"]
