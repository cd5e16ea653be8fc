"""From a configuration to a folder of results: one task, and drivers that only loop."""
