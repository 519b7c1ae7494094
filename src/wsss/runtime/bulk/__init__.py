"""Bulk labelling: many images, resumable, in several processes or on several machines.

A job freezes its list of images, cuts it into units, and counts a unit as done when its commit
record is there. See `docs/labelling.md` for the layout of a job's folder.
"""
