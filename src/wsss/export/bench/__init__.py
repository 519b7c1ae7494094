"""`wsss bench cam` and `wsss bench label`: exported graphs beside the forms in torch."""
