"""The figure of the method, box by box: CAMs, seeds, pairs, affinities, random walk, dense CRF."""
