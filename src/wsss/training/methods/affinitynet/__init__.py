"""AffinityNet (Ahn and Kwak, CVPR 2018)."""
