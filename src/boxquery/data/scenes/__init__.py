"""Scenes that several cameras see. ``open`` opens them; only ``loading`` needs torch."""

from boxquery.data.scenes.records import ERRORS, DetectionProtocol, SceneData, SceneDetections, SceneRecord, SceneSplit

__all__ = ["ERRORS", "DetectionProtocol", "SceneData", "SceneDetections", "SceneRecord", "SceneSplit"]
