"""Huge images: overlapping tiles, blended."""
