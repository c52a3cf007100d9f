"""The configurations that ship with askance, importable as `askance.configs`."""
