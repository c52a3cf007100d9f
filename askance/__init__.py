"""The one command: `askance`, or `python -m askance`; it imports everything else lazily."""
