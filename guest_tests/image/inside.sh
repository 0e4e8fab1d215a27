# Installs what is unpacked, by the rules of dpkg, and writes the whole as a disk: GPT; an EFI system partition with
# systemd-boot for UEFI and syslinux for a BIOS, kernel and Debian's own initrd; ext4. Run by outside.sh.
set -e
esp_mib=64 root_mib=416
debs=/run/debs

# What Debian's packages take for granted before they are installed themselves.
ln -s mawk /usr/bin/awk
touch /etc/fstab
dpkg --force-depends --install $debs/base-passwd_*.deb
dpkg --force-depends --install $debs/base-files_*.deb
dpkg --force-depends --install $debs/libc6_*.deb $debs/dpkg_*.deb
dpkg --force-depends --unpack $debs/*.deb
# Of drivers the initrd needs those of the root disk; all that might be needed elsewhere would cost seconds a boot.
mkdir -p /etc/initramfs-tools/conf.d /usr/share/initramfs-tools/modules.d
echo MODULES=list > /etc/initramfs-tools/conf.d/vdev
printf 'virtio_pci\nvirtio_blk\next4\n' > /usr/share/initramfs-tools/modules.d/vdev
dpkg --configure -a

passwd -d root # it logs in at the console without one
echo debian > /etc/hostname
printf 'vfio_iommu_type1\nvfio_pci\n' > /etc/modules-load.d/vfio.conf
# A disk with the serial number vdev-payload is a tar archive; its main.py is run, then the machine ends.
cat > /etc/systemd/system/vdev-payload.service <<'EOF'
[Unit]
Description=Payload on the disk vdev-payload
After=systemd-modules-load.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
StandardOutput=journal+console
StandardError=journal+console
RuntimeDirectory=payload
ExecStartPre=/usr/bin/tar -xf /dev/disk/by-id/virtio-vdev-payload -C /run/payload
ExecStart=/usr/bin/python3 -B /run/payload/main.py all
[Install]
WantedBy=dev-disk-by\x2did-virtio\x2dvdev\x2dpayload.device
EOF
systemctl enable vdev-payload.service
systemctl mask getty-static.service # nobody looks at tty2 to tty6

disk=/run/out/disk.img
esp_start=1 root_start=$((1 + esp_mib))
truncate -s $((root_start + root_mib + 1))M $disk
sfdisk -q $disk <<EOF
label: gpt
start=${esp_start}MiB, size=${esp_mib}MiB, type=U, name=esp, attrs="LegacyBIOSBootable"
start=${root_start}MiB, size=${root_mib}MiB, type=L, name=root
EOF

append="root=PARTLABEL=root ro console=ttyS0 loglevel=5 panic=-1 no_timer_check vfio_iommu_type1.allow_unsafe_interrupts=1"
boot=/run/boot
mkdir $boot
echo "timeout 0" > $boot/loader.conf
printf '%s\n' "title Debian" "linux /vmlinuz" "initrd /initrd.img" "options $append" > $boot/debian.conf
printf '%s\n' "DEFAULT debian" "LABEL debian" "LINUX /vmlinuz" "INITRD /initrd.img" "APPEND $append" > $boot/syslinux.cfg
esp="$disk@@${esp_start}M"
mformat -i $esp -T $((esp_mib * 2048)) -v ESP ::
mmd -i $esp ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
mcopy -i $esp /usr/lib/systemd/boot/efi/systemd-bootx64.efi ::/EFI/BOOT/BOOTX64.EFI
mcopy -i $esp $boot/loader.conf ::/loader/loader.conf
mcopy -i $esp $boot/debian.conf ::/loader/entries/debian.conf
mcopy -i $esp $boot/syslinux.cfg ::/syslinux.cfg
mcopy -i $esp /boot/vmlinuz-* ::/vmlinuz
mcopy -i $esp /boot/initrd.img-* ::/initrd.img
syslinux --install --offset $((esp_start * 1048576)) $disk
dd if=/usr/lib/syslinux/mbr/gptmbr.bin of=$disk bs=440 count=1 conv=notrunc status=none

rm -rf $boot /boot/vmlinuz-* /boot/initrd.img-* # they are on the EFI system partition
mke2fs -q -t ext4 -L root -m 0 -O ^has_journal -E offset=$((root_start * 1048576)),root_owner=0:0 \
    -d /run/self $disk ${root_mib}M
