"""Before a run: what the data is, what is wrong with it, what will go wrong, and whether a model can overfit a few of its images.

``command.check`` is the command. ``run_checks.run_checks`` is its quick part, with which every training starts.
"""
