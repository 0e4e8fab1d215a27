"""QEMU as it is told of our machine: arguments (`machine`, `args`), their syntax (`options`), rules (`rules`)."""
