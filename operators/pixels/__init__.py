"""Operators that act on pixels and channels."""
