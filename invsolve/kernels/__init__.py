"""Update formulas, each standing once: free functions of tensors, levels and explicit noise."""
