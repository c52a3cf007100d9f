"""Offline: data sets, training, attacks, the AUROC harness, and the bundle that comes of it."""
