"""Presets beyond paper, small and tiny: squares that are not normalised, in training, in the saved model, and in what starts from it."""

import pytest

import boxquery as bq
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing
from boxquery.training.config import RunConfig
from tests.training.runs import SMALL, scenes, settings

OPTIONS = SMALL | {"decoder_layers": 1, "denoising": 10, "fusion_blocks": 1}
AS_PUBLISHED = Preprocessing(64, square=True, mean=None, std=None)


def test_pixels_stay_as_they_are_from_training_to_training(tmp_path):
    made = bq.train(scenes(), epochs=1, out=tmp_path / "a", **settings("rt-detr", OPTIONS) | {"preset": "r18", "pretrained": False})
    assert made.preprocessing == AS_PUBLISHED
    assert bq.load(tmp_path / "a").preprocessing == AS_PUBLISHED
    assert RunConfig.read(tmp_path / "a").normalize is False
    later = bq.train(
        scenes(), epochs=1, out=tmp_path / "b", start_from=tmp_path / "a", preset="tiny", image_size=64, batch_size=4, device="cpu"
    )
    assert later.preprocessing == AS_PUBLISHED  # as the weights know it, though the preset normalises
    alone = bq.train(scenes(), epochs=1, out=tmp_path / "c", **settings("rt-detr", OPTIONS) | {"pretrained": False})
    assert alone.preprocessing == Preprocessing(64, square=True)


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_size_that_a_model_has_not_lists_those_that_it_has(command, capsys):
    assert run([command, "shapes", "--model", "rt-detr", "--preset", "s"]) == 2
    said = capsys.readouterr().err
    assert "rt-detr has no preset 's'; choose one of paper, r18, r34, r50m, r101, small, tiny" in said
