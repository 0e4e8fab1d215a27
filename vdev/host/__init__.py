"""The policy of the host's PASID authority: who may have which PASID, and when it is free again. Pure.

`ranges` says which numbers are free, `changes` what can happen, `policy` what may. Whoever owns a `Policy` asks it for
the changes a wish comes to (a refusal instead raises), makes them durable, and only then has them applied: so what was
answered is never lost, and what was lost was never answered.
"""
