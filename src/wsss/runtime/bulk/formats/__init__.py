"""Output formats; see `contract`."""
