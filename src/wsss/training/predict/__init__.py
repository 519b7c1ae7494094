"""Trained runs applied to images and measured."""
