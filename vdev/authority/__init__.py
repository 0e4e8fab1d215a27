"""The host's PASID authority: one process per host that owns every guest's PASIDs, and the client backends ask it with.

`vdev.host` decides; here is what makes decisions durable (`ledger`, `desk`), who may ask (`processes`, `lease_server`,
`admin`), and how the process begins and ends (`server`, `start`). `lease` is a backend's side. docs/pasid-authority.md.
"""
