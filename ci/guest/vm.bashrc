# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# The shell of scripts/vm.

PS1='blksnap-vm:\w# '
alias ll='ls -l'
mkdir -p /run/a /run/b /run/store /run/image
cat <<'END'

  A machine with the patched kernel. /dev/vda, /dev/vdb and /dev/vdc are yours.
  For example:

    mkfs.ext4 -q /dev/vda && mount /dev/vda /run/a && cp -r /usr/share/doc /run/a
    mkfs.xfs  -q /dev/vdb && mount /dev/vdb /run/b && cp -r /etc /run/b
    mkfs.ext4 -q /dev/vdc && mount /dev/vdc /run/store

    blksnap run /dev/vda /dev/vdb --store /run/store -- bash
        # a shell in which both snapshots are held: see env | grep BLKSNAP, then
        #   rm -r /run/a/doc; mount -o ro,noload $BLKSNAP_IMAGE_1 /run/image; ls /run/image
        # and exit (after umount /run/image) to release them

    blksnap --help      dmesg | tail      exit

END
