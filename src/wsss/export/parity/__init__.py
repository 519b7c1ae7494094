"""Exported graphs measured against torch."""
