"""Before a run: what the data is, what is wrong with it, what will go wrong, and the proof that a model can learn from it.

``command.check`` is the command; ``command.before_training`` is its quick part, with which every training starts. Only what builds a model
(``ahead``, ``learn``, ``grid``) needs torch.
"""
