# Runs a command as an ordinary user whose root is a tree of packages. Needs a user and a mount namespace of its own;
# the mounts, and the root, which is in memory, end with it.
#   tools_enter.sh TREE [FROM TO]... -- COMMAND...     FROM, a file or directory of the host, is seen at TO
set -e
PATH=$PATH:/usr/sbin:/sbin # pivot_root; an ordinary user of Debian has neither
tree=$1
shift
root=$tree/mnt # only a place to mount on
mount -t tmpfs -o mode=755 tmpfs "$root"
for name in usr proc dev sys old etc boot; do mkdir "$root/$name"; done
for name in tmp run var; do mkdir -m 1777 "$root/$name"; done
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
cp -r "$tree/etc/." "$root/etc"
mount --bind "$tree/usr" "$root/usr"
mount -t tmpfs tmpfs "$root/usr/lib/modules" # depmod writes there
for name in proc dev sys; do mount --rbind "/$name" "$root/$name"; done
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$root${2%/*}"
        : >"$root$2"
    fi
    mount --rbind "$1" "$root$2"
    shift 2
done
shift
cd "$root"
pivot_root . old
umount -l old
# Programs that find themselves to be root do what only the real one may.
exec unshare --user --map-user=1000 --map-group=1000 -- "$@"
