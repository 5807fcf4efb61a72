"""Networks, candidates, budgets and engines on the same pictures: quality, average MACs, measured time."""
