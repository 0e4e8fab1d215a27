"""`vdev ctl`: the commands of the monitor, for people who do not speak QMP. Made from the schema."""
