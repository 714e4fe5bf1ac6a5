"""Phrases: the pool that keeps them, where they come from, how they are stored."""
