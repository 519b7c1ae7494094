"""SEC (Kolesnikov and Lampert, ECCV 2016)."""
