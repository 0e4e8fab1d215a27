"""The monitor under a crowd: what the bridge adds to a command's time while some of its clients behave badly."""
