"""The generated image set of `wsss demo`: figures, scenes, files."""
