"""IRNet (Ahn, Cho and Kwak, CVPR 2019)."""
