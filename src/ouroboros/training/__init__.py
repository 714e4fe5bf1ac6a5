"""Drafts that are trained for their target: one file a concept, ``distill`` puts them together.

Nothing is imported here: the command line takes its defaults from ``settings``, which loads no torch.
"""
