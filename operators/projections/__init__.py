"""Matrices, compressed sensing and tomography."""
