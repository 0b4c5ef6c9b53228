#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# The image survives everything that changes the media, not just plain writes.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8

# begin DEV: sets $image and $old
begin()
{
	old=$scratch/old
	filled "$1" "$SIZE" "$old"
	snapshot_of "$1"
	image=$(image_of "$1")
}

# changed DEV: the device is not what it was, and the image still is
changed()
{
	uncache "$1"
	same "$image" "$old"
	if ctl same "$1" "$old" >/dev/null; then
		wrong "the device has not changed"
	fi
	equal 0 "$(error_of "$1")" "the snapshot's error"
}

# zeroes DEV OFFSET BYTES: they are there
zeroes()
{
	head -c "$3" /dev/zero >"$scratch/zeroes"
	same "$1" "$scratch/zeroes" "$2"
}

discard_on()
{
	local dev=$1

	[ "$(limit_of "$dev" discard_max_bytes)" != 0 ] || skip "no discard on $dev"
	begin "$dev"
	discard "$dev" -o $((1 << 20)) -l $((1 << 20))
	changed "$dev"
	# From the middle of a chunk to the middle of another, in part saved already.
	discard "$dev" -o $(((1 << 20) + (512 << 10) - 4096)) -l $(((2 << 20) + 8192))
	put direct $((3 << 20)) 4096 "$dev"
	changed "$dev"
	# All of it at once.
	discard "$dev" -l $((SIZE << 20))
	changed "$dev"
	put direct 0 $((SIZE << 20)) "$dev"
	changed "$dev"
}

zero_on()
{
	local dev=$1 max

	begin "$dev"
	max=$(limit_of "$dev" write_zeroes_max_bytes)
	discard "$dev" -z -o $((1 << 20)) -l $(((1 << 20) + 4096))
	changed "$dev"
	zeroes "$dev" $((1 << 20)) $(((1 << 20) + 4096))
	# Without a command for it, there are no holes.
	if fallocate -p -o $((4 << 20)) -l $((1 << 20)) "$dev" 2>/dev/null; then
		zeroes "$dev" $((4 << 20)) $((1 << 20))
	elif [ "$max" != 0 ]; then
		wrong "no hole could be punched"
	fi
	fallocate -n -z -o $((6 << 20)) -l 8192 "$dev"
	changed "$dev"
	zeroes "$dev" $((6 << 20)) 8192
	discard "$dev" -z -l $((SIZE << 20))
	changed "$dev"
}

discard_null_blk()
{
	null_blk "$SIZE" discard=1
	discard_on "$REPLY"
}

discard_brd()
{
	brd "$SIZE"
	discard_on "$REPLY"
}

discard_loop()
{
	loop "$SIZE"
	discard_on "$REPLY"
}

discard_disk()
{
	disk 0
	discard_on "$REPLY"
}

# One bio is about more than may be in memory at a time.
discard_much()
{
	local dev mebibytes=96 peak

	null_blk "$mebibytes" discard=1; dev=$REPLY
	old=$scratch/old
	filled "$dev" "$SIZE" "$old"
	attach "$dev"
	new_storage
	create "$storage" $(((mebibytes << 11) + 2048))
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$dev")
	discard "$dev"
	changed "$dev"
	# The bytes in memory are bounded all the same.
	peak=$(figure "$image" copy_bytes_peak)
	[ -n "$peak" ] || return 0
	result "at most $peak bytes were in memory"
	[ "$peak" -gt 0 ]
	[ "$peak" -le $((32 << 20)) ]
}

# at_most MOST FIGURE: of the image
at_most()
{
	local got

	got=$(figure "$image" "$2")
	[ "${got:-0}" -le "$1" ] || wrong "$2 is $got, more than $1"
}

# at_least LEAST FIGURE
at_least()
{
	local got

	got=$(figure "$image" "$2")
	[ "${got:-$1}" -ge "$1" ] || wrong "$2 is $got, less than $1"
}

# A discard that would have something saved does nothing, and the map of changes is without it.
ignored_on()
{
	local dev=$1 block bytes

	[ "$(limit_of "$dev" discard_max_bytes)" != 0 ] || skip "no discard on $dev"
	begin "$dev"
	block=$(cbt "$dev" block_size)
	bytes=$(((SIZE << 20) - 2 * block))
	cp "$old" "$scratch/new"
	put direct 0 4096 "$dev" "$scratch/new"
	# Chunks that are saved, and others
	discard "$dev" -l $((2 * block))
	discard "$dev" -o $((4 * block)) -l $((bytes - 2 * block))
	uncache "$dev"
	same "$dev" "$scratch/new"
	same "$image" "$old"
	at_most 4096 stored_bytes
	at_least "$bytes" ignored_discard_bytes
	at_most "$bytes" ignored_discard_bytes
	# Only chunks that are saved
	discard "$dev" -l 4096
	uncache "$dev"
	zeroes "$dev" 0 4096
	same "$image" "$old"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	ctl destroy "$snapshot"
	take "$dev"
	equal "0:2" "$(map "$dev")" "the map of changes"
	ctl destroy "$snapshot"
	# Nothing is held any more.
	discard "$dev" -o "$block" -l "$block"
	uncache "$dev"
	zeroes "$dev" "$block" "$block"
	take "$dev"
	equal "0:2 1:3" "$(map "$dev")" "the map of changes later"
}

ignored()
{
	reloaded ignore_discards=2
	case $1 in
	null_blk)	null_blk "$SIZE" discard=1 ;;
	*)		"$1" "$SIZE" ;;
	esac
	ignored_on "$REPLY"
}

# The free space of a file system costs nothing.
trimmed()
{
	local dev mnt

	need fstrim
	null_blk 512 discard=1; dev=$REPLY
	make_fs "$1" "$dev"
	mounted "$dev"; mnt=$REPLY
	echo something >"$mnt/file"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	fstrim "$mnt"
	at_least $((128 << 20)) ignored_discard_bytes
	sync
	# What the file system writes itself
	at_most $((1 << 20)) stored_bytes
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

# Members of an array have to agree, also on what is discarded, while one of them is in a snapshot.
mirror()
{
	local one md

	null_blk "$SIZE" discard=1; one=$REPLY
	null_blk "$SIZE" discard=1
	md_array raid1 "$one" "$REPLY"; md=$REPLY
	put direct 0 $((SIZE << 20)) "$md"
	begin "$one"
	discard "$md" -o $((1 << 20)) -l $((4 << 20))
	uncache "$one"
	zeroes "$one" $((1 << 20)) $((4 << 20))
	same "$image" "$old"
}

zero_null_blk()
{
	null_blk "$SIZE"
	zero_on "$REPLY"
}

zero_disk()
{
	disk 0
	zero_on "$REPLY"
}

zero_dm()
{
	disk 0
	dm_linear blksnap-zero "$REPLY" 0 $((SIZE << 11))
	zero_on "$REPLY"
}

# All of it or nothing is on the media, so it must not be cut.
atomic()
{
	local dev

	scsi_disk "$SIZE" atomic_wr=1; dev=$REPLY
	[ "$(limit_of "$dev" atomic_write_max_bytes)" -ge 65536 ] || skip "no atomic writes"
	begin "$dev"
	put direct,atomic 65536 65536 "$dev"
	put direct,atomic $((1 << 20)) 4096 "$dev"
	changed "$dev"
	# Partly saved already, and then all of it
	put direct $((3 << 20)) 20480 "$dev"
	put direct,atomic $((3 << 20)) 65536 "$dev"
	put direct,atomic $((3 << 20)) 65536 "$dev"
	changed "$dev"
}

secure_erase()
{
	disk 0
	begin "$REPLY"
	discard "$REPLY" -s -o $((1 << 20)) -l $((1 << 20)) ||
		skip "no secure erase on $REPLY"
	changed "$REPLY"
}

# Flush and FUA
synchronous()
{
	local dev

	null_blk "$SIZE" fua=1 cache_size=1; dev=$REPLY
	begin "$dev"
	put direct,dsync 4096 512 "$dev"
	changed "$dev"
	put dsync $((1 << 20)) 65536 "$dev"
	changed "$dev"
	dd if=/dev/zero of="$dev" bs=64k count=16 seek=32 oflag=direct conv=notrunc,fsync \
		status=none
	changed "$dev"
	dd if=/dev/zero of="$dev" bs=1M count=2 seek=5 conv=notrunc,fdatasync status=none
	changed "$dev"
}

# It is refused where it would wait, and never loses anything.
nowait()
{
	local dev

	null_blk "$SIZE" irqmode=2 completion_nsec=1000000; dev=$REPLY
	begin "$dev"
	ctl nowait "$dev" 0 $((4 << 20))
	same "$image" "$old"
	# What is saved passes.
	put direct $((4 << 20)) $((4 << 20)) "$dev"
	ctl nowait "$dev" $((4 << 20)) $((5 << 20)) | tee "$scratch/nowait"
	grep -qx 'refused 0' "$scratch/nowait"
	changed "$dev"
}

# submitted DEPTH: 32 first writes to a disk that does DEPTH things at a time, each in
# 100 ms, by one thread
submitted()
{
	local dev count=32

	null_blk "$SIZE" irqmode=2 completion_nsec=100000000 hw_queue_depth="$1" \
		submit_queues=1
	dev=$REPLY
	begin "$dev"
	ctl submit "$dev" "$count" $((128 << 10)) >"$scratch/submitted"
	cat "$scratch/submitted"
	grep -qx "pending $count" "$scratch/submitted"
	grep -qx "slept 0" "$scratch/submitted"
	grep -qx "helpers 0" "$scratch/submitted"
	changed "$dev"
}

# A page that was mapped before the take is written back after it.
mapped()
{
	local dev

	need fio
	null_blk "$SIZE"; dev=$REPLY
	begin "$dev"
	fio --name=mmap --filename="$dev" --rw=randwrite --ioengine=mmap --bs=4k \
		--size="${SIZE}M" --io_size=2M --end_fsync=1 >/dev/null
	changed "$dev"
}

# io_uring with many writes at once, and vectors of many pages
many_at_once()
{
	local dev

	need fio
	null_blk "$SIZE" irqmode=2 completion_nsec=500000; dev=$REPLY
	begin "$dev"
	fio --name=many --filename="$dev" --rw=randwrite --ioengine=io_uring --direct=1 \
		--bsrange=512-64k --size="${SIZE}M" --io_size=8M --iodepth=64 \
		>/dev/null
	changed "$dev"
}

run_cases \
	"discard that is ignored, null_blk" "ignored null_blk" \
	"discard that is ignored, brd" "ignored brd" \
	"discard that is ignored, loop" "ignored loop" \
	"fstrim of ext4" "trimmed ext4" \
	"fstrim of xfs" "trimmed xfs" \
	"fstrim of btrfs" "trimmed btrfs" \
	"discard below md" mirror \
	"discard on null_blk" discard_null_blk \
	"discard on brd" discard_brd \
	"discard on loop" discard_loop \
	"discard on the spare disk" discard_disk \
	"discard of 96 MiB at once" discard_much \
	"zeroes on null_blk" zero_null_blk \
	"zeroes on the spare disk" zero_disk \
	"zeroes on dm" zero_dm \
	"secure erase" secure_erase \
	"atomic writes" atomic \
	"flush and FUA" synchronous \
	"writes that do not wait" nowait \
	"32 writes of one thread" "submitted 64" \
	"32 writes of one thread to a disk that does 2 at a time" "submitted 2" \
	"writes by mmap" mapped \
	"many writes at once" many_at_once
