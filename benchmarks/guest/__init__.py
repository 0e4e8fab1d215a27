"""The same guest booted against vdev and against QEMU's own IOMMUs: `machines` is the table, `rounds` runs it."""
