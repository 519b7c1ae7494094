"""Forms of the random walk: one operator, computed by whatever the machine has."""
