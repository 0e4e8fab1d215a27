"""Small mutations of the device, and the proof that a test notices each: `make mutate`."""
