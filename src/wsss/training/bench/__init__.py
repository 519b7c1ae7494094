"""What `wsss bench` measures of the networks in torch: cases, forms and published baselines."""
