# Unpacks packages and goes inside. Run in a user and a mount namespace of its own, where "root" is the caller and can
# give files to nobody else; all mounts end with the namespace.
#   outside.sh WORK     WORK/debs has the packages, WORK/out takes the disk, WORK/inside.sh makes it
set -e
cd "$1"
mkdir -p root out
for deb in debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner --keep-directory-symlink -C root
done
cp inside.sh root/run/inside.sh
mkdir root/run/debs root/run/out root/run/self
mount --bind debs root/run/debs
mount --bind out root/run/out
mount --bind root root/run/self # this tree without what is mounted in it
mount --rbind /proc root/proc
mount --rbind /dev root/dev
cat > root/etc/dpkg/dpkg.cfg.d/vdev <<'EOF'
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
force-unsafe-io
EOF
# Owners are fakeroot's to remember, for dpkg and for mke2fs; it need not even try the real thing.
exec env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 FAKEROOTDONTTRYCHOWN=1 \
    DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true \
    chroot root fakeroot-sysv /bin/sh -e /run/inside.sh
