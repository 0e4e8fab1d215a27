"""What any virtio device shares, however it is carried: the split ring, its ordering and its polling policy. Pure."""
