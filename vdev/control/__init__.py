"""How a running backend is asked and steered: typed JSON messages over a UNIX socket."""
