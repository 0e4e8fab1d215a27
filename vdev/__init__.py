"""A virtual IOMMU and the PCI endpoints behind it, served to unmodified QEMU over UNIX sockets.

Start reading at docs/architecture.md; the layers and who may import whom are in pyproject.toml.
"""

__version__ = "0.1.0"
