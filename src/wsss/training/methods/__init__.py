"""Methods, one folder each; see `contract`."""
