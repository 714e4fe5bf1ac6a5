"""Measurements of the methods. Prints nothing."""
