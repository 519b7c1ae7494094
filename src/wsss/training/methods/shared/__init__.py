"""Stages, networks and losses that methods share."""
