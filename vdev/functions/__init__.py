"""PCI functions put together from the cores below, and the one door all endpoint DMA goes through. Pure."""
