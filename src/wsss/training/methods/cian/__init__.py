"""CIAN (Fan and others, AAAI 2020)."""
