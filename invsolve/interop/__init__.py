"""invsolve inside other libraries."""
