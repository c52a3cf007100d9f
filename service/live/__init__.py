"""The live page: what a server does now, and what it flagged last, for whoever may look."""
