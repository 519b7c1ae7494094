"""Exported models: the manifest, its checks, and labelling with the graphs."""
