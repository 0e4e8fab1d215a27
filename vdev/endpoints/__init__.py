"""The devices behind the IOMMU, one file each, listed in table.py. Pure models: files and sockets live in backends."""
