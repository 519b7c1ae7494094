"""Sections of recipes: every hyper-parameter of every stage, with its range and default.

What methods share has a file for each part, with the published settings of AffinityNet (Ahn and
Kwak, CVPR 2018, and its released code); each method has a file of its own, with those of its paper.
"""
