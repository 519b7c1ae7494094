"""Units of work, their workers and their commit records."""
