"""Probing: clients that feel their way to an image that is let through, told by what they ask one after the other."""
