"""Models that find 3-D boxes in scenes of several cameras: one file per paper, as in the folder above."""
