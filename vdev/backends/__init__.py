"""Files, taps and sockets behind an endpoint model. Empty until an endpoint needs one."""
