"""Review: requests that are kept for people to look at, on disk, within bounds."""
