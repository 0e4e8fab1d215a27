"""What costs what, measured; nothing here is ever asserted. Run all with `make bench`."""
