"""Where images come from: folders, globs, lists, tar shards, URLs."""
