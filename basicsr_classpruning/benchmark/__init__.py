"""Networks, candidates, budgets and engines on the same images: quality, average MACs, measured time."""
