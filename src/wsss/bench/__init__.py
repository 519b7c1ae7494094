"""Measurements of speed: `wsss bench`."""
