"""Runtime: what is served, in which versions, and how images come to it in batches."""
