"""The self-guided network (Ke and others, 2018)."""
