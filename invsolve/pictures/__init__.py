"""Pictures of results: panels, strips and galleries."""
