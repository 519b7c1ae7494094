"""Compiled forms of the walk and of affinities; each is checked against the plain one."""
