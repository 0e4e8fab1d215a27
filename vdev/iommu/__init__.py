"""The virtio-iommu unit: request bytes in, reply bytes, translations and events out. Pure; start at engine.py."""
