"""Backbone networks, one file each; see `backbone`."""
