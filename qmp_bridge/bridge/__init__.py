"""The QMP server in front of QEMU's monitor: one connection to QEMU, shared by many clients. See docs/monitor.md."""
