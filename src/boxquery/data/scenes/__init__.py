"""Scenes that several cameras see. Only ``loading`` needs torch."""

from boxquery.data.scenes.records import ERRORS, DetectionProtocol, SceneData, SceneRecord, SceneSplit

__all__ = ["ERRORS", "DetectionProtocol", "SceneData", "SceneRecord", "SceneSplit"]
