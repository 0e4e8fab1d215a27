"""What any PCI function shares: config space, capabilities, bus-master gate, reset. Pure."""
