"""From a dense checkpoint to a ClassPruning network, without training."""
