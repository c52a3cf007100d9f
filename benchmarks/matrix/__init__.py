"""The matrix: one rule for layers, thresholds, views and fusion, tried on classifiers of all kinds (`make matrix`)."""
