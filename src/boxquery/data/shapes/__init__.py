"""The built-in scenes."""

from boxquery.data.shapes.options import names_scenes, scene_options
from boxquery.data.shapes.scenes import shapes_data

__all__ = ["names_scenes", "scene_options", "shapes_data"]
