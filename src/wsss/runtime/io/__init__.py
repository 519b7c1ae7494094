"""Files in and out: images, label maps, score maps, image-level labels, progress."""
