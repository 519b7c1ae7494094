"""What `wsss bench` measures: speed as a ratio against a baseline in the same run."""
