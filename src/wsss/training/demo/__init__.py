"""A whole method on a small generated image set."""
