"""Recipes: every hyper-parameter of every stage."""
