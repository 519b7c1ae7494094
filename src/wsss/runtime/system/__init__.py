"""What the machine allows: memory, cores, threads."""
