"""Weakly supervised semantic segmentation, from image-level labels to production."""

from .version import __version__

__all__ = ["__version__"]
