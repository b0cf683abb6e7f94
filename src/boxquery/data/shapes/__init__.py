"""The built-in scenes."""

from boxquery.data.shapes.options import WORD, shapes_options
from boxquery.data.shapes.scenes import shapes_data

__all__ = ["WORD", "shapes_data", "shapes_options"]
