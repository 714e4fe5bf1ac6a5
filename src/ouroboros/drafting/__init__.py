"""Drafters: each proposes a token tree in every step and learns from the verdict."""
