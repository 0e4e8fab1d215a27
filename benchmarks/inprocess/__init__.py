"""vdev's pieces measured in one process, without a guest: `measure` has the table."""
