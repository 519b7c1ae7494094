"""The frozen list of a job and the image-level labels in it."""
