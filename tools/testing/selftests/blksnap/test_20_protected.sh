#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Devices whose data is encrypted on the way to the media, or has checksums there: what is
# saved is what is on the media.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=32

# plain TEXT MEBIBYTES FILE: the text, again and again
plain()
{
	# It is interrupted.
	{ yes "$1 that must not be on any media" || :; } | head -c $(($2 << 20)) >"$3"
}

# hidden DEV...: none of the texts is on the media
hidden()
{
	local dev

	for dev; do
		step
		uncache "$dev"
		if grep -qa "that must not be on any media" "$dev"; then
			wrong "there is plain text on $dev"
		fi
	done
}

# take_with_disk DEV: a snapshot with a disk for storage, in $store
take_with_disk()
{
	null_blk $((2 * SIZE)); store=$REPLY
	attach "$1"
	create "$store" 0
	ctl add "$1" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$1")
}

# mount_encrypted DEV: at $where
mount_encrypted()
{
	where=$(mktemp -d "$scratch/mount.XXXXXX")
	undo rmdir "$where"
	mount -t ext4 -o inlinecrypt "$1" "$where" 2>/dev/null || skip "no inlinecrypt"
	undo umount "$where"
}

# A file system that leaves the encryption to the block layer
inlinecrypt()
{
	local dev

	need mkfs.ext4
	null_blk "$SIZE"; dev=$REPLY
	mkfs.ext4 -q -F -b 4096 -O encrypt "$dev" 2>/dev/null || skip "no encryption in mkfs.ext4"
	mount_encrypted "$dev"
	mkdir "$where/dir"
	ctl encrypt "$where/dir" new || skip "no encryption in ext4"
	plain OLD 8 "$scratch/old"
	plain NEW 8 "$scratch/new"
	cp "$scratch/old" "$where/dir/file"
	sync -f "$where"
	hidden "$dev"

	take_with_disk "$dev"
	step
	cat "$image" >"$scratch/image"
	dd if="$scratch/new" of="$where/dir/file" bs=64k count=64 conv=notrunc oflag=direct \
		status=none
	dd if="$scratch/new" of="$where/dir/file" bs=64k skip=64 seek=64 conv=notrunc,fsync \
		status=none
	eventually used_at_least $((8 << 11))
	same "$image" "$scratch/image"
	cmp "$scratch/new" "$where/dir/file"
	hidden "$dev" "$store" "$image"

	# With the key, a restored image has the old text.
	null_blk "$SIZE"
	dd if="$image" of="$REPLY" bs=1M oflag=direct status=none
	mount_encrypted "$REPLY"
	ctl encrypt "$where"
	cmp "$scratch/old" "$where/dir/file"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

# dm_on_top TARGET ARGUMENTS... DEV: a device of device-mapper that encrypts
dm_on_top()
{
	local dev=${!#} key

	need dmsetup
	printf -v key %0128x 4711
	dmsetup create blksnap-secret --noudevsync --table \
		"0 $((SIZE << 11)) $1 aes-xts-plain64 $key 0 $dev 0" 2>/dev/null ||
		skip "no dm-$1"
	undo dmsetup remove --retry --noudevsync blksnap-secret
	secret=/dev/mapper/blksnap-secret
	[ -b $secret ] || dmsetup mknodes blksnap-secret
}

# below TARGET: the snapshot is of the disk below, and what it saves is encrypted.
below()
{
	local dev

	null_blk "$SIZE"; dev=$REPLY
	dm_on_top "$1" "$dev"
	plain OLD "$SIZE" "$scratch/old"
	plain NEW "$SIZE" "$scratch/new"
	dd if="$scratch/old" of=$secret bs=1M oflag=direct status=none
	hidden "$dev"
	take_with_disk "$dev"
	step
	cat "$image" >"$scratch/image"
	dd if="$scratch/new" of=$secret bs=64k oflag=direct status=none
	eventually used_at_least $(((SIZE - 1) << 11))
	same "$image" "$scratch/image"
	hidden "$dev" "$store" "$image"
	cmp "$scratch/new" $secret
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

# above TARGET: the snapshot is of the device that shows the text.
above()
{
	null_blk "$SIZE"
	dm_on_top "$1" "$REPLY"
	filled $secret "$SIZE" "$scratch/old"
	take_with_disk $secret
	put direct 0 $((4 << 20)) $secret
	put direct $(((5 << 20) + 4096)) $((2 << 20)) $secret
	put buffered $((20 << 20)) 123456 $secret
	same "$image" "$scratch/old"
	eventually used_at_least $((6 << 11))
	same "$image" "$scratch/old"
	equal 0 "$(error_of $secret)" "the snapshot's error"
}

# checked PARAMETER=VALUE...: a disk that has a checksum with each block, and verifies it
checked()
{
	local dev

	scsi_disk "$SIZE" "$@"; dev=$REPLY
	[ -d "/sys/block/${dev#/dev/}/integrity" ] || skip "no integrity"
	result "$(cat "/sys/block/${dev#/dev/}/integrity/format")"
	filled "$dev" "$SIZE" "$scratch/old"
	take_with_disk "$dev"
	put direct 0 $((4 << 20)) "$dev"
	put direct $(((5 << 20) + 512)) $((2 << 20)) "$dev"
	put buffered $((20 << 20)) 123456 "$dev"
	same "$image" "$scratch/old"
	eventually used_at_least $((6 << 11))
	same "$image" "$scratch/old"
	# And as storage
	ctl destroy "$snapshot"
	store=$dev
	ctl detach "$dev"
	null_blk 8; dev=$REPLY
	filled "$dev" 8 "$scratch/old"
	attach "$dev"
	create "$store" 0
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	put direct 0 $((6 << 20)) "$dev"
	eventually used_at_least $((6 << 11))
	same "$(image_of "$dev")" "$scratch/old"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

run_cases \
	"ext4 with inline encryption" inlinecrypt \
	"below dm-inlinecrypt" "below inlinecrypt" \
	"below dm-crypt" "below crypt" \
	"on dm-inlinecrypt" "above inlinecrypt" \
	"on dm-crypt" "above crypt" \
	"checksums of type 1" "checked dif=1 dix=1" \
	"checksums of type 3" "checked dif=3 dix=1" \
	"checksums of which the disk knows" "checked dif=1 dix=0"
