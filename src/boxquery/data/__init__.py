"""Data sets: ``read`` what the files say, ``validate`` it; ``open_data`` does both. Only ``transforms`` and ``loading`` need torch."""
