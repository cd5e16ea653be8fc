"""Numerical pieces that know nothing of diffusion."""
