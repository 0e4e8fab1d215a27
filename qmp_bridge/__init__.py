"""Launches VMs: a backend and a QEMU from one YAML file, watched together and taken down together.

Of vdev it knows the configuration, the machine made of it, the parts from outside and the control messages.
"""
