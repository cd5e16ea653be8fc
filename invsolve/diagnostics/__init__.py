"""Is a sampler right: its exact law on Gaussian problems, and its calibration against posteriors that are known."""
