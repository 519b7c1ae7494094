"""Instances: which pixels belong to one object, from maps of displacement and boundary."""
