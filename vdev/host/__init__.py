"""The host authority: PASID space, quotas, ledger policy. Empty until PASIDs are built."""
