"""Blur and super-resolution."""
