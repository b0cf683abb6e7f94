"""The built-in scenes of several cameras."""

from boxquery.data.surround.scenes import surround_data

__all__ = ["surround_data"]
