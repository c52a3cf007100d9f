"""Probing: by how many questions a live server names who attacks it, what going on as others costs, and how many honest
clients it names.
"""
