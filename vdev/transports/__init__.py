"""Sockets, guest RAM mappings and the event loop's work scheduler. The only I/O on the device side."""
