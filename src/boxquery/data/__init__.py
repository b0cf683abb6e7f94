"""From files to batches: the formats, the checks that run before training, the built-in scenes, the transforms.

``open.open_data`` is the way in. Only ``transforms`` and ``loading`` need torch.
"""
