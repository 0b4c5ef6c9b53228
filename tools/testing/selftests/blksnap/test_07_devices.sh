#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# A snapshot of several devices is of one moment, and file systems in it are clean.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# two_devices: an ext4 and an xfs that are mounted at $a and $b
two_devices()
{
	if [ "$(wc -w <<<"${BLKSNAP_DISKS:-}")" -ge 2 ]; then
		disk 0; dev_a=$REPLY
		disk 1; dev_b=$REPLY
	else
		null_blk 64; dev_a=$REPLY
		null_blk 320; dev_b=$REPLY
	fi
	make_fs ext4 "$dev_a"
	make_fs xfs "$dev_b"
	mounted "$dev_a"; a=$REPLY
	mounted "$dev_b"; b=$REPLY
}

# recovered DEV NAME: $REPLY is a copy of the device that can be written to
recovered()
{
	local sectors=$(($(size_of "$1") / 512))

	null_blk 32
	dm "$2" "0 $sectors snapshot $1 $REPLY N 8"
}

# keep_writing A B: counts in both; what B says never is ahead
keep_writing()
{
	local i

	for ((i = 1; ; i++)); do
		echo "$i" >"$1/count.new"
		mv "$1/count.new" "$1/count"
		echo "$i" >"$2/count.new"
		mv "$2/count.new" "$2/count"
		mkdir -p "$1/dir$((i % 16))" "$2/dir$((i % 16))"
		echo "$i $RANDOM" >"$1/dir$((i % 16))/$i"
		echo "$i $RANDOM" >"$2/dir$((i % 16))/$i"
		rm -f "$1/dir$(((i + 5) % 16))/"*
	done
}

count_in()
{
	local count

	count=$(<"$1/count")
	echo "${count:-0}"
}

# File systems that are being written
file_systems()
{
	local dev_a dev_b a b image_a image_b dev i where where_a where_b writer

	need mkfs.ext4 mkfs.xfs e2fsck xfs_repair
	two_devices
	for where in "$a" "$b"; do
		: >"$where/file"
		ctl put buffered 0 $((4 << 20)) "$where/file"
		(cd "$where" && md5sum file >sums)
		echo 0 >"$where/count"
		# In the page cache only, until the take.
		echo before >"$where/before"
	done
	background keep_writing "$a" "$b"
	writer=$!
	sleep 1
	snapshot_of "$dev_a" "$dev_b"
	for where in "$a" "$b"; do
		echo after >"$where/after"
		ctl put buffered 1000000 $((2 << 20)) "$where/file"
	done
	sync -f "$a"
	sync -f "$b"
	sleep 1

	image_a=$(image_of "$dev_a")
	image_b=$(image_of "$dev_b")
	e2fsck -fn "$image_a"
	# XFS leaves something in its log when it is frozen.
	recovered "$image_b" blksnap-recovered; dev=$REPLY
	mounted "$dev" -o nouuid
	umount "$REPLY"
	xfs_repair -n "$dev"
	dm_remove blksnap-recovered
	mounted "$image_a" -o ro; where_a=$REPLY
	mounted "$image_b" -o ro,norecovery,nouuid; where_b=$REPLY
	for where in "$where_a" "$where_b"; do
		equal before "$(<"$where/before")" "the file written before"
		[ ! -e "$where/after" ] || wrong "the file written after is in the image"
		(cd "$where" && md5sum --quiet -c sums)
	done
	i=$(($(count_in "$where_a") - $(count_in "$where_b")))
	[ "$(count_in "$where_a")" -gt 1 ]
	[ "$i" -ge 0 ]
	[ "$i" -le 1 ]
	# The writers went on.
	stop "$writer"
	[ "$(count_in "$a")" -gt $(($(count_in "$where_a") + 1)) ]
	for where in "$a" "$b"; do
		equal after "$(<"$where/after")" "the file written after"
	done
	umount "$where_a" "$where_b" "$a" "$b"
	e2fsck -fn "$dev_a"
	xfs_repair -n "$dev_b"
	ctl destroy "$snapshot"
}

number_on()
{
	dd if="$1" bs=4096 count=1 iflag=direct status=none | od -An -tu8 -N8 | tr -d ' '
}

# Without file systems it is the queues that have to be stopped together.
raw()
{
	local devs=() devs_of_round round i first last number

	for i in 0 1; do
		null_blk 1
		devs+=("$REPLY")
	done
	null_blk 1 irqmode=2 completion_nsec=100000
	devs+=("$REPLY")
	null_blk 1
	dm_linear blksnap-count "$REPLY" 0 2048
	devs+=("$REPLY")
	for i in "${devs[@]}"; do
		attach "$i"
	done
	background blksnap_ctl count "${devs[@]}"
	for round in 1 2 3 4 5; do
		sleep 0.1
		# In another order each time.
		devs_of_round=("${devs[@]:round % 4}" "${devs[@]:0:round % 4}")
		take "${devs_of_round[@]}"
		first=
		last=
		for i in "${devs[@]}"; do
			number=$(number_on "$(image_of "$i")")
			echo "round $round, $i: $number"
			if [ -n "$last" ] && [ "$number" -gt "$last" ]; then
				wrong "a later write is in the snapshot, and an earlier one is not"
			fi
			: "${first:=$number}"
			last=$number
		done
		[ $((first - last)) -le 1 ] || wrong "$first on the first device, $last on the last"
		[ "$first" -gt 0 ]
		# It stays that way.
		sleep 0.1
		equal "$last" "$(number_on "$(image_of "${devs[3]}")")" "the image"
		ctl destroy "$snapshot"
	done
}

# File systems on partitions are frozen for a snapshot of the disk.
disk_with_file_systems()
{
	local disk where image

	partitioned 64; disk=$REPLY
	make_fs ext4 "${disk}p1"
	make_fs ext4 "${disk}p2"
	mounted "${disk}p1"; where=$REPLY
	echo before >"$where/before"
	mounted "${disk}p2"
	echo before >"$REPLY/before"
	snapshot_of "$disk"
	image=$(image_of "$disk")
	echo after >"$where/after"
	sync -f "$where"
	eventually test -b "${image}p2"
	e2fsck -fn "${image}p1"
	e2fsck -fn "${image}p2"
	mounted "${image}p1" -o ro
	equal before "$(<"$REPLY/before")" "the file written before"
	[ ! -e "$REPLY/after" ]
	mounted "${image}p2" -o ro
	equal before "$(<"$REPLY/before")" "the file written before"
}

# A file system on a device that is stacked on the one in the snapshot, as a logical volume is.
stacked()
{
	local dev volume image

	null_blk 64; dev=$REPLY
	dm_linear blksnap-volume "$dev" 2048 65536; volume=$REPLY
	make_fs ext4 "$volume"
	mounted "$volume"; where=$REPLY
	attach "$dev"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	ctl freeze "$snapshot" "$volume"
	expect EALREADY ctl freeze "$snapshot" "$volume"
	expect EINVAL ctl freeze "$snapshot" "$dev" 1
	expect ENOTBLK ctl freeze "$snapshot" "$storage"
	expect EBADF ctl freeze "$snapshot" fd:99
	expect ESRCH ctl freeze 00000000-0000-0000-0000-000000000001 "$dev"
	# Only in memory so far
	echo before >"$where/before"
	ctl take "$snapshot"
	expect EBUSY ctl freeze "$snapshot" "$dev"
	echo after >"$where/after"
	timeout 10 sync -f "$where"
	image=$(image_of "$dev")
	dm_linear blksnap-volume-of-image "$image" 2048 65536
	# Without the journal
	e2fsck -fn "$REPLY"
	mounted "$REPLY" -o ro,noload
	equal before "$(<"$REPLY/before")" "the file written before"
	[ ! -e "$REPLY/after" ] || wrong "the file written after is in the image"
}

# fs_on_loop DIR MEBIBYTES: a file there is $loop, with an ext4 that has $where/file
fs_on_loop()
{
	truncate -s "$2M" "$1/file"
	loop_on "$1/file"; loop=$REPLY
	make_fs ext4 "$loop"
	mounted "$loop"; where=$REPLY
	: >"$where/file"
}

# in_orders DEV ORDER...: what is on a file of a file system is frozen before that, in whatever
# order they are added. An order is a list of devices.
in_orders()
{
	local dev=$1 order

	watched
	for order in "${@:2}"; do
		# It is written when the file system is frozen.
		ctl put buffered 0 $((4 << 20)) "$where/file"
		# shellcheck disable=SC2086
		take $order
		e2fsck -fn "$(image_of "$loop")"
		equal 0 "$(error_of "$dev")" "the snapshot's error"
		ctl destroy "$snapshot"
		step
	done
}

# loop_on_fs TYPE
loop_on_fs()
{
	local dev loop where

	null_blk 256; dev=$REPLY
	make_fs "$1" "$dev"
	mounted "$dev"
	fs_on_loop "$REPLY" 64
	attach "$dev"
	attach "$loop"
	in_orders "$dev" "$dev $loop" "$loop $dev"
}

# The same where the other device of the disk, and the disk itself, are in the snapshot too,
# which it is not on.
loop_on_partition()
{
	local disk two loop where

	partitioned 128; disk=$REPLY two=${REPLY}p2
	make_fs ext4 "${disk}p1"
	mounted "${disk}p1"
	fs_on_loop "$REPLY" 32
	attach "$disk"
	attach "$two"
	attach "$loop"
	in_orders "$disk" "$two $loop $disk" "$disk $loop $two" "$loop $two $disk"
}

# What somebody else has frozen stays frozen.
frozen_by_another()
{
	local dev where

	need fsfreeze
	null_blk 16; dev=$REPLY
	make_fs ext4 "$dev"
	mounted "$dev"; where=$REPLY
	echo before >"$where/before"
	attach "$dev"
	fsfreeze -f "$where"
	undo thaw "$where"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	if timeout 30 blksnap_ctl take "$snapshot"; then
		e2fsck -fn "$(image_of "$dev")"
	fi
	(echo after >"$where/after") &
	sleep 0.5
	if [ -e "$where/after" ]; then
		wrong "the take has thawed it"
	fi
	fsfreeze -u "$where"
	wait
	equal after "$(<"$where/after")" "the file"
}

# thawed_soon DIR: thaws the file system as soon as it is frozen
thawed_soon()
{
	until fsfreeze -u "$1" 2>/dev/null; do
		sleep 0.01
	done
}

# Where somebody thaws what was frozen for the take, that is no moment of the file system.
thawed_by_another()
{
	local dev slow where

	need fsfreeze
	null_blk 16; dev=$REPLY
	# The take waits for a write to it, after the file system was frozen.
	null_blk 1 irqmode=2 completion_nsec=2000000000; slow=$REPLY
	make_fs ext4 "$dev"
	mounted "$dev"; where=$REPLY
	attach "$dev"
	attach "$slow"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	ctl add "$slow" "$snapshot"
	background put direct 0 4096 "$slow"
	sleep 0.3
	background thawed_soon "$where"
	expect EAGAIN ctl take "$snapshot"
	equal "error 0 image " "$(ctl info "$dev" | tr '\n' ' ' | sed 's/ $//')" "the snapshot"
	# The next one freezes it, and nothing is frozen afterwards.
	ctl take "$snapshot"
	echo after >"$where/after"
	timeout 10 sync -f "$where"
	e2fsck -fn "$(image_of "$dev")"
	ctl destroy "$snapshot"
	# What is frozen cannot be mounted.
	umount "$where"
	mount "$dev" "$where"
}

# unsynced DEV: the kernel remembers that its last block could not be written
unsynced()
{
	local badblocks=/sys/kernel/config/nullb/${1#/dev/}/badblocks block

	block=$(($(size_of "$1") / 4096 - 1))
	echo "+$((block * 8))-$((block * 8 + 7))" >"$badblocks"
	dd if=/dev/urandom of="$1" bs=4096 seek="$block" count=1 conv=notrunc status=none
	sync
	echo "-$((block * 8))-$((block * 8 + 7))" >"$badblocks"
}

# A device that cannot be synced when its file system was frozen fails the take, and leaves
# nothing frozen.
failing_sync()
{
	local dev log where

	null_blk 320; dev=$REPLY
	if [ "$1" = xfs ]; then
		# The snapshot is of the device with the log.
		null_blk 320; log=$REPLY
		need mkfs.xfs
		mkfs.xfs -qf -l logdev="$log" "$dev"
		mounted "$dev" -o logdev="$log"; where=$REPLY
		dev=$log
	else
		make_fs "$1" "$dev"
		mounted "$dev"; where=$REPLY
	fi
	attach "$dev"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	unsynced "$dev"
	expect EIO ctl take "$snapshot"
	log_says "blksnap: the file system on .* cannot be frozen" ||
		wrong "the kernel's log does not say why"
	timeout 10 dd if=/dev/zero of="$where/file" bs=4096 count=1 conv=fsync status=none ||
		wrong "the file system is frozen"
	# The error is not remembered any longer.
	ctl take "$snapshot"
	echo after >"$where/after"
	timeout 10 sync -f "$where"
}

thaw()
{
	fsfreeze -u "$1" 2>/dev/null || true
}

# What was frozen is thawed, also when the take fails: here because a device is gone.
failing_take()
{
	local dev gone where

	null_blk 16; dev=$REPLY
	null_blk 1; gone=$REPLY
	make_fs ext4 "$dev"
	mounted "$dev"; where=$REPLY
	attach "$dev"
	ctl attach "$gone"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	ctl add "$gone" "$snapshot"
	null_blk_remove "$gone"
	if ctl take "$snapshot"; then
		wrong "a snapshot was taken of a device that is gone"
	fi
	timeout 10 sync -f "$where"
	timeout 10 dd if=/dev/zero of="$where/file" bs=1M count=1 conv=fsync status=none
	# No device is half in it.
	equal "error 0 image " "$(ctl info "$dev" | tr '\n' ' ' | sed 's/ $//')" "the snapshot"
	ctl destroy "$snapshot"
	take "$dev"
	e2fsck -fn "$(image_of "$dev")"
}

run_cases \
	"ext4 and xfs, being written" file_systems \
	"devices without file systems, being written" raw \
	"disk with file systems on its partitions" disk_with_file_systems \
	"file system on a stacked device" stacked \
	"loop device on an ext4" "loop_on_fs ext4" \
	"loop device on a btrfs" "loop_on_fs btrfs" \
	"loop device on a partition, with the disk and another one" loop_on_partition \
	"file system that somebody else has frozen" frozen_by_another \
	"file system that somebody else thaws" thawed_by_another \
	"device with an error, below a btrfs" "failing_sync btrfs" \
	"device with an error, with the log of an xfs" "failing_sync xfs" \
	"take that fails" failing_take
