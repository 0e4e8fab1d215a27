#!/bin/sh
# Your own way to start QEMU, with vdev behind it. A test runs this file as it is.
#
#   own-script.sh CONFIG KERNEL INITRD [MORE QEMU ARGUMENTS...]
#
# VDEV and QEMU name the two programs; RUNDIR is a directory that does not exist yet, with a short path.
set -eu

VDEV=${VDEV:-vdev}
QEMU=${QEMU:-qemu-system-x86_64}
RUNDIR=${RUNDIR:-/tmp/vdev-own.$$}
config=$1 kernel=$2 initrd=$3
shift 3

# 1. The backend. It prints one line once its sockets listen and the ACPI table is written.
mkdir -m 700 "$RUNDIR"
mkfifo "$RUNDIR/ready"
$VDEV serve "$config" --runtime-dir "$RUNDIR" --exit-with-vm >"$RUNDIR/ready" &
backend=$!
# QEMU ends before the backend does: it aborts when a vfio-user socket closes under it.
trap 'kill $backend 2>/dev/null || :; wait $backend || :; rm -rf "$RUNDIR"' EXIT
trap 'exit 1' HUP INT TERM
read -r ready <"$RUNDIR/ready" || { echo "vdev did not start" >&2; exit 1; }
echo "$ready"

# 2. QEMU: vdev's part of the command line, quoted for the shell, then yours.
arguments=$($VDEV qemu-args "$config" --runtime-dir "$RUNDIR")
eval "set -- $arguments \"\$@\""
$QEMU -nodefaults -no-user-config -display none -no-reboot \
    -accel tcg -cpu max -smp 1 -serial stdio \
    -kernel "$kernel" -initrd "$initrd" \
    -append "console=ttyS0 panic=-1 no_timer_check vfio_iommu_type1.allow_unsafe_interrupts=1 ${APPEND:-}" \
    "$@"
