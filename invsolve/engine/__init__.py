"""The one reverse loop, the contract that samplers keep, and what watches, guards and stores a trajectory."""
