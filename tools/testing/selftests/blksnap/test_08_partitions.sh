#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Every path to the sectors counts: a filter on a disk sees what is written through its
# partitions, one on a partition what is written through the disk.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# On a disk of 16 MiB there are partitions at 1 MiB and at 5 MiB.
readonly FIRST=$((1 << 20)) SECOND=$((5 << 20))

# check_disk DISK ONE TWO: a snapshot of the disk
check_disk()
{
	local disk=$1 one=$2 two=$3 image old=$scratch/old

	ctl put direct 0 $((4 << 20)) "$one"
	ctl put direct 0 $((8 << 20)) "$two"
	copy_of "$disk" "$old"
	snapshot_of "$disk"
	image=$(image_of "$disk")
	put direct 4096 $((1 << 20)) "$one"
	same "$image" "$old"
	put buffered 12345 $((3 << 20)) "$two"
	uncache "$two"
	put direct $((SECOND - 65536)) $((128 << 10)) "$disk"
	same "$image" "$old"
	if ctl same "$disk" "$old" >/dev/null; then
		wrong "the disk has not changed"
	fi
	# The image has the same partitions.
	eventually test -b "${image}p2"
	tail -c +$((SECOND + 1)) "$old" >"$scratch/part"
	truncate -s "$(size_of "$two")" "$scratch/part"
	equal "$(size_of "$two")" "$(size_of "${image}p2")" "the partition's size"
	same "${image}p2" "$scratch/part"
	equal 1 "$(blockdev --getro "${image}p2")" "read-only"
	ctl destroy "$snapshot"
	[ ! -e "${image}p1" ]
	[ ! -e "$image" ]
}

disk_null_blk()
{
	partitioned 16
	check_disk "$REPLY" "${REPLY}p1" "${REPLY}p2"
}

disk_loop()
{
	need sfdisk
	loop 16 --partscan
	printf '2048,8192\n10240,\n' | sfdisk -q "$REPLY"
	eventually test -b "${REPLY}p2"
	check_disk "$REPLY" "${REPLY}p1" "${REPLY}p2"
}

disk_spare()
{
	need sfdisk
	disk 0
	printf '2048,8192\n10240,22528\n' | sfdisk -q "$REPLY"
	undo wipefs -qaf "$REPLY"
	eventually test -b "${REPLY}2"
	check_spare "$REPLY" "${REPLY}1" "${REPLY}2"
}

# As check_disk does, for a disk that is too large to be compared.
check_spare()
{
	local disk=$1 one=$2 two=$3 image

	filled "$one" 4 "$scratch/one"
	filled "$two" 11 "$scratch/two"
	snapshot_of "$disk"
	image=$(image_of "$disk")
	put direct 4096 $((1 << 20)) "$one"
	put direct $((SECOND - 65536)) $((128 << 10)) "$disk"
	put buffered 12345 $((3 << 20)) "$two"
	uncache "$two"
	same "$image" "$scratch/one" "$FIRST"
	same "$image" "$scratch/two" "$SECOND"
	eventually test -b "${image}p2"
	same "${image}p1" "$scratch/one"
	same "${image}p2" "$scratch/two"
	if ctl same "$one" "$scratch/one" >/dev/null; then
		wrong "the partition has not changed"
	fi
}

# A snapshot of a partition
through_disk()
{
	local disk one two image

	partitioned 16; disk=$REPLY one=${REPLY}p1 two=${REPLY}p2
	filled "$one" 4 "$scratch/one"
	filled "$two" 11 "$scratch/two"
	copy_of "$disk" "$scratch/disk"
	snapshot_of "$two"
	image=$(image_of "$two")
	equal "$(size_of "$two")" "$(size_of "$image")" "the size"
	# In front of it, over its beginning, in the middle, up to its end
	put direct 0 $((1 << 20)) "$disk" "$scratch/disk"
	put direct $((2 << 20)) $((3 << 20)) "$disk" "$scratch/disk"
	same "$image" "$scratch/two"
	put direct $((SECOND - 512)) 1024 "$disk" "$scratch/disk"
	same "$image" "$scratch/two"
	put direct $((8 << 20)) $((1 << 20)) "$disk" "$scratch/disk"
	put direct $((15 << 20)) $((1 << 20)) "$disk" "$scratch/disk"
	same "$image" "$scratch/two"
	# Its own path still works.
	put direct $((2 << 20)) 65536 "$two"
	same "$image" "$scratch/two"
	put direct $((SECOND + (2 << 20))) 65536 "$disk" "$scratch/disk"
	same "$disk" "$scratch/disk"
	same "$image" "$scratch/two"
}

# The other partition's writes are none of its business.
other_partition()
{
	local one two

	partitioned 16; one=${REPLY}p1 two=${REPLY}p2
	filled "$two" 11 "$scratch/two"
	attach "$two"
	new_storage
	create "$storage" 16
	ctl add "$two" "$snapshot"
	ctl take "$snapshot"
	put direct 0 $((4 << 20)) "$one"
	equal 0 "$(error_of "$two")" "the snapshot's error"
	same "$(image_of "$two")" "$scratch/two"
	ctl destroy "$snapshot"
	take "$two"
	equal 0 "$(ctl cbtmap "$two" 0 160 | grep -vc '^0$')" "changed blocks"
}

# Disk and partition, each with a filter, in one snapshot and in two
both()
{
	local disk one

	partitioned 16; disk=$REPLY one=${REPLY}p1
	filled "$one" 4 "$scratch/one"
	copy_of "$disk" "$scratch/disk"
	snapshot_of "$disk" "$one"
	put direct 8192 100352 "$one"
	put direct $((FIRST + (1 << 20))) 100352 "$disk"
	same "$(image_of "$one")" "$scratch/one"
	same "$(image_of "$disk")" "$scratch/disk"
	ctl destroy "$snapshot"

	copy_of "$disk" "$scratch/disk"
	take "$disk"
	put direct 4096 65536 "$one"
	copy_of "$one" "$scratch/one"
	take "$one"
	put direct 0 200704 "$one"
	put direct $((FIRST + (2 << 20))) 100352 "$disk"
	same "$(image_of "$one")" "$scratch/one"
	same "$(image_of "$disk")" "$scratch/disk"
}

# The filter goes with the partition; the disk works on.
deleted()
{
	local disk two

	need delpart addpart
	partitioned 16; disk=$REPLY two=${REPLY}p2
	ctl attach "$two"
	delpart "$disk" 2
	[ ! -e "$two" ]
	put direct "$SECOND" 4096 "$disk"
	addpart "$disk" 2 10240 22528
	eventually test -b "$two"
	# That is a new one.
	expect ENOENT ctl cbtinfo "$two"
	ctl attach "$two"
	blockdev --rereadpt "$disk"
	eventually test -b "$two"
	expect ENOENT ctl detach "$two"
	attach "$two"
	put direct 0 4096 "$two"
}

# A partition that is in a snapshot is either kept, or the snapshot knows.
deleted_while_held()
{
	local disk two image

	need delpart
	partitioned 16; disk=$REPLY two=${REPLY}p2
	filled "$two" 11 "$scratch/two"
	snapshot_of "$two"
	image=$(image_of "$two")
	if delpart "$disk" 2 2>/dev/null; then
		expect EIO ctl same "$image" "$scratch/two"
	else
		put direct $((SECOND + 4096)) 65536 "$disk"
		same "$image" "$scratch/two"
		if blockdev --rereadpt "$disk" 2>/dev/null; then
			wrong "the partitions were read again"
		fi
		same "$image" "$scratch/two"
	fi
	ctl destroy "$snapshot"
}

# Filters of two drivers on one disk. Each device has one at most.
two_drivers()
{
	local disk

	modprobe -q blk_filter_counter 2>/dev/null || skip "no sample filter"
	undo unload blk_filter_counter
	partitioned 16; disk=$REPLY
	filled "${disk}p2" 8 "$scratch/old"
	ctl attach "$disk" write_counter
	undo ctl detach "$disk" write_counter
	expect EBUSY ctl attach "$disk"
	expect EALREADY ctl attach "$disk" write_counter
	expect ENOENT ctl detach "$disk"
	equal write_counter "$(<"/sys/block/${disk#/dev/}/filter")" "the attribute"
	snapshot_of "${disk}p2"
	expect EBUSY ctl attach "${disk}p2" write_counter
	put direct 0 65536 "${disk}p2"
	put direct 8192 4096 "${disk}p1"
	same "$(image_of "${disk}p2")" "$scratch/old"
	if rmmod blk_filter_counter 2>/dev/null; then
		wrong "the driver of an attached filter was unloaded"
	fi
	# The filter that was attached last comes first. The other one sees what it has taken when
	# that is resubmitted.
	equal "2 136" "$(ctl ctl "$disk" write_counter 0 16 zero:16 | paste -sd ' ')" \
		"the writes and their sectors"
}

sysfs()
{
	local disk one

	partitioned 16; disk=${REPLY#/dev/} one=${REPLY#/dev/}p1
	equal "" "$(<"/sys/block/$disk/filter")" "the attribute"
	attach "/dev/$one"
	equal blksnap "$(<"/sys/block/$disk/$one/filter")" "the partition's attribute"
	equal "" "$(<"/sys/block/$disk/filter")" "the disk's attribute"
	ctl detach "/dev/$one"
	equal "" "$(<"/sys/block/$disk/$one/filter")" "the partition's attribute"
}

run_cases \
	"disk that is written through partitions, null_blk" disk_null_blk \
	"disk that is written through partitions, loop" disk_loop \
	"disk that is written through partitions, spare disk" disk_spare \
	"partition that is written through the disk" through_disk \
	"writes to another partition" other_partition \
	"disk and partition with a filter each" both \
	"partition that is deleted" deleted \
	"partition that is deleted while in a snapshot" deleted_while_held \
	"filters of two drivers" two_drivers \
	"attribute in sysfs" sysfs
