"""The built-in scenes."""

from boxquery.data.shapes.scenes import shapes_data

__all__ = ["shapes_data"]
