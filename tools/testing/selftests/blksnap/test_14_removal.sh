#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Devices go away, or change, while they have the filter, with and without a snapshot,
# idle and being written.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8

# What a command for the filter of a device that is gone fails with
readonly GONE=ENOENT

# The ways to go, with what becomes of a device that nobody has open, and of an open one:
#   gone     it is not there any more
#   empty    it is there without a medium
#   failing  it is there, and its I/O fails
#   stays    it is as it was, until nobody has it open any more
#
# new_WAY makes a device, remove_WAY DEV takes it away. If there is again_WAY DEV, it
# comes back by that.
readonly WAYS="
	null_blk	gone	gone
	disk_of_part	gone	gone
	part		gone	stays
	loop		empty	stays
	brd		gone	stays
	dm		gone	failing
	md		gone	stays
	scsi		gone	gone
	scsi_module	gone	stays
	virtio		gone	gone
	virtio_driver	gone	gone
"

new_null_blk()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=500000
}

remove_null_blk()
{
	null_blk_remove "$1"
}

again_null_blk()
{
	echo 1 >"/sys/kernel/config/nullb/${1#/dev/}/power"
}

new_part()
{
	partitioned $((2 * SIZE))
	REPLY=${REPLY}p2
}

remove_part()
{
	delpart "${1%p2}" 2
}

again_part()
{
	blockdev --rereadpt "${1%p2}"
}

new_disk_of_part()
{
	new_part
}

remove_disk_of_part()
{
	null_blk_remove "${1%p2}"
}

new_loop()
{
	loop "$SIZE"
}

remove_loop()
{
	losetup -d "$1"
}

new_brd()
{
	brd "$SIZE"
}

remove_brd()
{
	rmmod brd
}

new_dm()
{
	null_blk "$SIZE"
	dm_linear blksnap-gone "$REPLY" 0 $((SIZE << 11))
}

# If it is open, its table is replaced by one that gives errors.
remove_dm()
{
	dmsetup remove --force --noudevsync blksnap-gone
}

md_goes_late()
{
	echo "$1" >/sys/module/md_mod/parameters/legacy_async_del_gendisk
}

new_md()
{
	local md=/sys/block/md_blksnap/md params=/sys/module/md_mod/parameters i

	[ -e $params/new_array ] || skip "no md"
	# The disk is to go when the array is stopped.
	if [ -e $params/legacy_async_del_gendisk ]; then
		undo md_goes_late "$(<$params/legacy_async_del_gendisk)"
		md_goes_late N
	fi
	null_blk $((SIZE + 1))
	set -- "$REPLY"
	null_blk $((SIZE + 1))
	set -- "$@" "$REPLY"
	echo md_blksnap >$params/new_array
	undo md_stop
	echo raid1 2>/dev/null >$md/level || skip "no raid1"
	echo 2 >$md/raid_disks
	echo $((SIZE << 10)) >$md/component_size
	for i in 0 1; do
		shift $i
		cat "/sys/block/${1#/dev/}/dev" >$md/new_dev
		echo $i >"$md/dev-${1#/dev/}/slot"
	done
	echo none >$md/resync_start
	echo active >$md/array_state
	REPLY=/dev/md_blksnap
}

md_stop()
{
	[ ! -e /sys/block/md_blksnap ] || eventually remove_md 2>/dev/null
}

remove_md()
{
	echo clear >/sys/block/md_blksnap/md/array_state
}

new_scsi()
{
	scsi_disk "$SIZE" ndelay=500000
}

remove_scsi()
{
	echo 1 >"/sys/block/${1#/dev/}/device/delete"
}

again_scsi()
{
	echo "- - -" | tee /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/scsi_host/*/scan \
		>/dev/null
	eventually find_scsi
	[ "$REPLY" = "$1" ]
}

new_scsi_module()
{
	new_scsi
}

remove_scsi_module()
{
	rmmod scsi_debug
}

# The last one of the spare disks; $virtio and $pci are what it is.
new_virtio()
{
	[ -n "${BLKSNAP_DISKS:-}" ] || skip "no spare disk"
	disk $(($(wc -w <<<"$BLKSNAP_DISKS") - 1))
	virtio=$(readlink -f "/sys/block/${REPLY#/dev/}/device")
	pci=${virtio%/*}
	[[ $virtio = */pci*/virtio* ]] || skip "$REPLY is not a virtio disk"
	undo eventually test -b "$REPLY"
}

remove_virtio()
{
	undo again_virtio
	echo 1 >"$pci/remove"
}

again_virtio()
{
	echo 1 >/sys/bus/pci/rescan
}

new_virtio_driver()
{
	new_virtio
}

remove_virtio_driver()
{
	undo again_virtio_driver
	echo "${virtio##*/}" >/sys/bus/virtio/drivers/virtio_blk/unbind
}

again_virtio_driver()
{
	[ -e "$virtio/driver" ] || echo "${virtio##*/}" >/sys/bus/virtio/drivers/virtio_blk/bind
}

# removal WAY UNOPENED OPENED attached|added|taken idle|load: a device with the filter,
# or one that is in a snapshot, or in one that was taken
removal()
{
	local way=$1 unopened=$2 opened=$3 state=$4 load=$5
	local dev number image='' writer='' reader='' other='' references

	watched
	references=$(references)
	"new_$way"; dev=$REPLY
	number=$((0x$(stat -c %t "$dev"))):$((0x$(stat -c %T "$dev")))
	filled "$dev" "$SIZE" "$scratch/old"
	cp "$scratch/old" "$scratch/new"
	case $state in
	attached)
		attach "$dev"
		;;
	added)
		attach "$dev"
		new_storage
		create "$storage" "$ROOM"
		ctl add "$dev" "$snapshot"
		;;
	taken)
		null_blk 2; other=$REPLY
		filled "$other" 2 "$scratch/other"
		snapshot_of "$dev" "$other"
		image=$(image_of "$dev")
		put direct $((2 << 20)) $((1 << 20)) "$dev" "$scratch/new"
		;;
	esac
	[ "$load" = idle ] || begin_load
	if [ "$state$load" = attachedidle ]; then
		"remove_$way" "$dev"
		"is_$unopened"
	else
		exec 7<"$dev"
		if ! "remove_$way" "$dev" 2>"$scratch/refused"; then
			[ "$opened" != gone ]
		fi
		"is_$opened"
	fi
	step
	destroy_soon
	exec 7<&-
	if [ -b "$dev" ]; then
		detach "$dev"
	elif command -v "again_$way" >/dev/null; then
		"again_$way" "$dev"
		came_back
	fi
	[ -z "$other" ] || detach "$other"
	eventually no_more_references
}

# Writes all but the last 2 MiB of $dev; its id is in $writer.
begin_writer()
{
	rm -f "$scratch/begun"
	blksnap_ctl churn direct 0 $((SIZE - 2 << 20)) 65536 "$dev" "$scratch/new" \
		"$scratch/begun" &
	writer=$!
	undo stop "$writer"
	eventually test -e "$scratch/begun"
}

begin_load()
{
	begin_writer 2>"$scratch/writer"
	if [ -n "$image" ]; then
		read_on "$image" "$scratch/old" &
		reader=$!
		undo stop "$reader"
	fi
	sleep 0.1
}

# read_on IMAGE COPY: until something is wrong, which then must be an error
read_on()
{
	while ctl same "$@" >"$scratch/reader" 2>&1; do
		:
	done
	cat "$scratch/reader"
	# The snapshot's error, or that of the device it reads.
	[[ $(tail -n 1 "$scratch/reader") = @(EIO|ENODEV) ]]
}

destroy_soon()
{
	[ -z "${snapshot:-}" ] || timeout 30 blksnap_ctl destroy "$snapshot"
	snapshot=
}

references()
{
	cat /sys/module/blksnap/refcnt 2>/dev/null || true
}

no_more_references()
{
	[ "$(references)" = "$references" ]
}

is_gone()
{
	eventually no_node
	load_ends
	if [ -e "/proc/self/fd/7" ]; then
		expect "$GONE" ctl info fd:7
		expect "$GONE" ctl cbtinfo fd:7
		expect "$GONE" ctl detach fd:7
		expect ENODEV ctl attach fd:7
	fi
	case $state in
	added)
		if ctl take "$snapshot"; then
			wrong "a snapshot was taken of a device that is gone"
		fi
		;;
	taken)
		is_broken
		;;
	esac
}

no_node()
{
	[ ! -e "$dev" ]
}

is_failing()
{
	expect EIO put direct $((SIZE - 1 << 20)) 4096 "$dev"
	load_ends
	if [ "$state" = taken ]; then
		[ "$(error_of "$dev")" -lt 0 ] || wrong "the snapshot says that all is well"
		is_broken
	fi
}

is_empty()
{
	eventually has_no_medium
	expect ENOSPC put direct 0 4096 "$dev"
}

has_no_medium()
{
	[ "$(size_of "$dev")" = 0 ]
}

# Nothing has happened, and it goes when it can.
is_stays()
{
	if [ -n "$image" ]; then
		same "$image" "$scratch/old"
		equal 0 "$(error_of "$dev")" "the snapshot's error"
	fi
	if [ -n "$writer" ]; then
		kill -TERM "$writer"
		wait "$writer"
	fi
	put direct $((4 << 20)) $((1 << 20)) "$dev" "$scratch/new"
	if [ -n "$image" ]; then
		same "$image" "$scratch/old"
	fi
	if [ -n "$reader" ]; then
		equal "" "$(<"$scratch/reader")" "what the reader says"
		stop "$reader"
	fi
	same "$dev" "$scratch/new"
	if [ "$state" = added ]; then
		ctl take "$snapshot"
		put direct 0 $((1 << 20)) "$dev"
		same "$(image_of "$dev")" "$scratch/new"
	fi
	destroy_soon
	exec 7<&-
	# Whoever has the image open keeps the device. Only a loop device remembers to go.
	[ "$way" = loop ] || eventually "remove_$way" "$dev" 2>/dev/null
	writer=''
	reader=''
	state=attached
	"is_$unopened"
}

# Who uses it notices.
load_ends()
{
	local status=0

	if [ -n "$writer" ]; then
		wait "$writer" || status=$?
		# A disk that is gone has no sectors.
		[[ $(<"$scratch/writer") = @(EIO|ENODEV|ENOSPC) ]] ||
			wrong "the writer ended with $status: $(<"$scratch/writer")"
	fi
	if [ -n "$reader" ]; then
		wait "$reader" || wrong "what the reader ends with"
	fi
}

# The snapshot's owner is told; the other device has nothing to do with it.
is_broken()
{
	event_of_removal
	expect EIO ctl same "$image" "$scratch/old"
	put direct 0 $((1 << 20)) "$other"
	same "$(image_of "$other")" "$scratch/other"
	equal 0 "$(error_of "$other")" "the error of the other device"
	expect EALREADY ctl take "$snapshot"
}

event_of_removal()
{
	ctl wait "$snapshot" 5000 | tee "$scratch/event"
	grep -qx 'code 0' "$scratch/event" || wrong "the event's code"
	grep -qx "device $number" "$scratch/event" || wrong "the event's device is not $number"
	grep -qx 'error -[1-9][0-9]*' "$scratch/event" || wrong "the event's error"
}

can_be_opened()
{
	: 2>/dev/null <"$1"
}

# It is a new device. Its node is there before it can be opened.
came_back()
{
	eventually can_be_opened "$dev"
	expect ENOENT ctl detach "$dev"
	filled "$dev" "$SIZE" "$scratch/old"
	snapshot_of "$dev"
	put direct 0 $((1 << 20)) "$dev"
	same "$(image_of "$dev")" "$scratch/old"
	destroy_soon
	detach "$dev"
}

# The disk goes with a file system on it that is in use.
mounted_disk()
{
	local dev where image number

	watched
	null_blk 320; dev=$REPLY
	number=$((0x$(stat -c %t "$dev"))):$((0x$(stat -c %T "$dev")))
	make_fs "$1" "$dev"
	mounted "$dev"; where=$REPLY
	: >"$where/file"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	head -c 4M "$image" >"$scratch/old"
	background write_files "$where"
	sleep 0.5
	null_blk_remove "$dev"
	event_of_removal
	expect EIO ctl same "$image" "$scratch/old"
	destroy_soon
	umount "$where"
}

write_files()
{
	local i

	for ((i = 0; ; i = (i + 1) % 8)); do
		ctl put buffered 0 1000000 "$1/file"
		cp "$1/file" "$1/$i"
		sync -f "$1"
	done 2>/dev/null
}

# The device stays, its storage does not.
storage_removed()
{
	local dev image under writer

	watched
	# Or all of the device may be stored before its storage goes.
	! is_module || reloaded copy_ahead=0
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	cp "$scratch/old" "$scratch/new"
	null_blk 64; under=$REPLY
	attach "$dev"
	create "$under" 0
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$dev")
	begin_writer
	null_blk_remove "$under"
	put direct $((SIZE - 1 << 20)) 4096 "$dev" "$scratch/new"
	sleep 0.5
	kill -TERM "$writer"
	wait "$writer"
	same "$dev" "$scratch/new"
	if ctl same "$image" "$scratch/old" >"$scratch/result" 2>&1; then
		wrong "the image can be read"
	fi
	equal EIO "$(tail -n 1 "$scratch/result")" "the image"
	# A disk that is gone has no space.
	ctl wait "$snapshot" 5000 | grep -x 'code [01]'
	destroy_soon
}

# With a partition in a snapshot the table cannot be read again, with a disk it can.
table()
{
	local disk one two number

	need sfdisk delpart
	watched
	partitioned 16; disk=$REPLY one=${REPLY}p1 two=${REPLY}p2
	copy_of "$disk" "$scratch/disk"
	copy_of "$two" "$scratch/two"
	snapshot_of "$two"
	if blockdev --rereadpt "$disk" 2>/dev/null; then
		wrong "the table was read again"
	fi
	put direct 0 65536 "$two"
	same "$(image_of "$two")" "$scratch/two"
	destroy_soon
	number=$(<"/sys/class/block/${two#/dev/}/dev")
	blockdev --rereadpt "$disk"
	eventually test -b "$two"
	log_says "blksnap: change tracking of $number has ended" ||
		wrong "the kernel's log does not say that tracking has ended"
	# That is a new one.
	expect ENOENT ctl detach "$two"

	copy_of "$disk" "$scratch/disk"
	snapshot_of "$disk"
	attach "$one"
	blockdev --rereadpt "$disk"
	eventually test -b "$one"
	expect ENOENT ctl detach "$one"
	sfdisk -q --delete "$disk" 1
	eventually test ! -e "$one"
	put direct 4096 65536 "$two"
	put direct $((1 << 20)) 65536 "$disk"
	same "$(image_of "$disk")" "$scratch/disk"
	equal 0 "$(error_of "$disk")" "the snapshot's error"
	destroy_soon
}

# right_or_eio IMAGE COPY: an image may be broken, but it is never wrong.
right_or_eio()
{
	ctl same "$@" >"$scratch/result" 2>&1 && return
	[ "$(tail -n 1 "$scratch/result")" = EIO ] || wrong "$(<"$scratch/result")"
}

# capacity_of DEV: what change tracking says
capacity_of()
{
	ctl cbtinfo "$1" | sed -n 's/^capacity //p'
}

generation_of()
{
	ctl cbtinfo "$1" | sed -n 's/^generation //p'
}

# resized DEV GROW SHRINK: commands that change its size while it is in a snapshot
resized()
{
	local dev=$1 size image before

	watched
	size=$(size_of "$dev")
	copy_of "$dev" "$scratch/old"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	before=$(generation_of "$dev")
	put direct 0 65536 "$dev"
	"$2"
	[ "$(size_of "$dev")" -gt "$size" ]
	equal "$size" "$(size_of "$image")" "the size of the image"
	put direct $((size - 4096)) 8192 "$dev"
	same "$image" "$scratch/old"
	destroy_soon
	# The next snapshot is of all of it, and nobody can take the change map for the old one.
	copy_of "$dev" "$scratch/old"
	take "$dev"
	image=$(image_of "$dev")
	equal "$(size_of "$dev")" "$(capacity_of "$dev")" "the capacity"
	[ "$before" != "$(generation_of "$dev")" ] || wrong "the generation goes on"
	put direct $((size - 8192)) 16384 "$dev"
	same "$image" "$scratch/old"
	"$3"
	[ "$(size_of "$dev")" -lt "$size" ]
	put direct 65536 65536 "$dev"
	right_or_eio "$image" "$scratch/old"
	destroy_soon
	copy_of "$dev" "$scratch/old"
	take "$dev"
	put direct 0 65536 "$dev"
	same "$(image_of "$dev")" "$scratch/old"
	equal "$(size_of "$dev")" "$(capacity_of "$dev")" "the capacity"
	destroy_soon
}

partition_resized()
{
	local disk

	need sfdisk resizepart
	null_blk 16; disk=$REPLY
	printf '2048,16384\n' | sfdisk -q "$disk"
	eventually test -b "${disk}p1"
	filled "${disk}p1" 8 "$scratch/old"
	resized "${disk}p1" grow_partition shrink_partition
}

grow_partition()
{
	resizepart "$disk" 1 24576
}

shrink_partition()
{
	resizepart "$disk" 1 8192
}

# What is cut off is not the partition's any more; when it is again, it may have changed.
partition_cut()
{
	local disk image

	need sfdisk resizepart
	watched
	null_blk 16; disk=$REPLY
	printf '2048,16384\n' | sfdisk -q "$disk"
	eventually test -b "${disk}p1"
	filled "${disk}p1" 8 "$scratch/old"
	snapshot_of "${disk}p1"
	image=$(image_of "${disk}p1")
	shrink_partition
	put direct $((7 << 20)) 65536 "$disk"
	resizepart "$disk" 1 16384
	right_or_eio "$image" "$scratch/old"
	destroy_soon
}

# exchanged ERROR DEV COMMAND...: of a device of 8 MiB, which keeps its size, but not its
# content; with a snapshot that is held, and without one
exchanged()
{
	local error=$1 dev=$2 image before

	# A loop device may be read-only.
	if [ "$(blockdev --getro "$dev")" = 0 ]; then
		filled "$dev" 8 "$scratch/old"
	else
		copy_of "$dev" "$scratch/old"
	fi
	snapshot_of "$dev"
	image=$(image_of "$dev")
	before=$(generation_of "$dev")
	"${@:3}"
	equal $((8 << 20)) "$(size_of "$dev")" "the size of the device"
	equal "$error" "$(error_of "$dev")" "the snapshot's error"
	ctl wait "$snapshot" 1000 | grep -x "error $error"
	right_or_eio "$image" "$scratch/old"
	# What was frozen stays.
	equal "$before" "$(ctl cbttakes "$dev" | head -1)" "the generation"
	destroy_soon
	begins_anew
	"${@:3}"
	begins_anew
}

# The next take of $dev does not go on from the one before.
begins_anew()
{
	take "$dev"
	[ "$before" != "$(generation_of "$dev")" ] || wrong "the generation goes on"
	before=$(generation_of "$dev")
	equal 0 "$(error_of "$dev")" "the error of the next snapshot"
	equal 2 "$(ctl cbttakes "$dev" | wc -l)" "the generation and the ids of takes"
	copy_of "$dev" "$scratch/old"
	same "$(image_of "$dev")" "$scratch/old"
	destroy_soon
}

# What its disk loses. The partition keeps its size, so nothing else tells of that.
disk_cut()
{
	local file=$scratch/backing disk

	need sfdisk
	watched
	truncate -s 16M "$file"
	undo rm -f "$file"
	printf '2048,16384\n' | sfdisk -q "$file"
	loop_on "$file" --partscan; disk=$REPLY
	eventually test -b "${disk}p1"
	exchanged -6 "${disk}p1" cut_file
}

cut_file()
{
	truncate -s 5M "$file"
	losetup -c "$disk"
	truncate -s 16M "$file"
	losetup -c "$disk"
}

moved_in_file()
{
	local file=$scratch/backing zeroes offset

	watched
	truncate -s 24M "$file"
	undo rm -f "$file"
	loop_on "$file" --sizelimit 8M
	printf -v zeroes %0384x 0
	offset=0
	exchanged -116 "$REPLY" move_in_file "$REPLY"
}

# To another offset each time
move_in_file()
{
	offset=$((offset + 1))
	# LOOP_SET_STATUS64, with lo_offset and lo_sizelimit
	ctl raw "$1" 0x4c04 \
		"${zeroes:0:48}0000${offset}000000000000000800000000000$zeroes"
}

# LOOP_CHANGE_FD, which wants a loop device that is read-only
other_backing_file()
{
	local files=("$scratch/one" "$scratch/two") next=1

	watched
	dd if=/dev/urandom of="${files[0]}" bs=1M count=8 status=none
	dd if=/dev/urandom of="${files[1]}" bs=1M count=8 status=none
	undo rm -f "${files[@]}"
	loop_on "${files[0]}" --read-only
	undo losetup -d "$REPLY"
	exchanged -116 "$REPLY" change_file "$REPLY"
}

change_file()
{
	ctl change_fd "$1" "${files[next]}"
	next=$((1 - next))
}

# The table of a dm device is exchanged with one that has another content, as by
# "lvconvert --merge".
other_table()
{
	local under offset

	watched
	null_blk 32; under=$REPLY
	dm_linear blksnap-exchanged "$under" 0 16384
	offset=0
	exchanged -116 "$REPLY" move_on_disk
}

# To another part of the disk each time
move_on_disk()
{
	offset=$((offset + 16384))
	put direct $((offset << 9)) $((4 << 20)) "$under"
	dm_table blksnap-exchanged "0 16384 linear $under $offset"
}

# dm_table NAME TABLE: exchanges it
dm_table()
{
	dmsetup suspend --noudevsync "$1"
	dmsetup reload "$1" --table "$2"
	dmsetup resume --noudevsync "$1"
}

# Of two targets the second has another content.
second_target()
{
	local under offset

	watched
	null_blk 32; under=$REPLY
	dm blksnap-exchanged "0 8192 linear $under 0
8192 8192 linear $under 8192"
	offset=8192
	exchanged -116 "$REPLY" move_second
}

move_second()
{
	offset=$((offset + 8192))
	dm_table blksnap-exchanged "0 8192 linear $under 0
8192 8192 linear $under $offset"
}

# Another type of target
other_type()
{
	local under type=linear

	watched
	null_blk 32; under=$REPLY
	dm_linear blksnap-exchanged "$under" 0 16384
	dmsetup targets | grep -q '^striped ' || skip "no dm-stripe"
	exchanged -116 "$REPLY" change_type
}

change_type()
{
	if [ "$type" = linear ]; then
		type="striped 2 128 $under 0 $under 32768"
		dm_table blksnap-exchanged "0 16384 $type"
	else
		type=linear
		dm_table blksnap-exchanged "0 16384 linear $under 0"
	fi
}

# Tables that have the same content, and perhaps more behind it
same_content()
{
	local under dev image before

	watched
	null_blk 32; under=$REPLY
	dm_linear blksnap-same "$under" 0 16384; dev=$REPLY
	filled "$dev" 8 "$scratch/old"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	before=$(generation_of "$dev")
	dm_table blksnap-same "0 16384 linear $under 0"
	put direct 0 65536 "$dev"
	equal 0 "$(error_of "$dev")" "the error after the same table"
	destroy_soon
	take "$dev"
	equal "$before" "$(generation_of "$dev")" "the generation after the same table"
	destroy_soon

	copy_of "$dev" "$scratch/old"
	take "$dev"
	image=$(image_of "$dev")
	dm_table blksnap-same "0 20480 linear $under 0"
	put direct 4096 65536 "$dev"
	# Behind what was added, another piece
	dm_table blksnap-same "0 20480 linear $under 0
20480 4096 linear $under 40960"
	put direct 0 4096 "$dev"
	equal 0 "$(error_of "$dev")" "the error after more was added"
	same "$image" "$scratch/old"
	destroy_soon
}

loop_resized()
{
	local file=$scratch/backing

	truncate -s "${SIZE}M" "$file"
	undo rm -f "$file"
	loop_on "$file"
	filled "$REPLY" "$SIZE" "$scratch/old"
	set -- "$REPLY"
	resized "$1" grow_loop shrink_loop
}

grow_loop()
{
	truncate -s "$((SIZE + 4))M" "$file"
	losetup -c "$dev"
}

shrink_loop()
{
	truncate -s "$((SIZE / 2))M" "$file"
	losetup -c "$dev"
}

dm_resized()
{
	null_blk $((2 * SIZE))
	set -- "$REPLY"
	dm_linear blksnap-resized "$1" 0 $((SIZE << 11))
	filled "$REPLY" "$SIZE" "$scratch/old"
	resized "$REPLY" grow_dm shrink_dm
}

# dm_resize SECTORS
dm_resize()
{
	local table

	table=$(dmsetup table blksnap-resized | cut -d' ' -f3-)
	dm_table blksnap-resized "0 $1 $table"
}

grow_dm()
{
	dm_resize $((SIZE + 4 << 11))
}

shrink_dm()
{
	dm_resize $((SIZE / 2 << 11))
}

# The filter stays at a loop device that gets another file. What was tracked was not that.
other_file()
{
	local dev before

	watched
	loop "$SIZE"; dev=$REPLY
	attach "$dev"
	take "$dev"
	before=$(generation_of "$dev")
	ctl destroy "$snapshot"
	losetup -d "$dev"
	eventually has_no_medium
	truncate -s "${SIZE}M" "$scratch/another"
	undo rm -f "$scratch/another"
	losetup "$dev" "$scratch/another"
	undo loop_remove "$dev" "$scratch/another"
	take "$dev"
	[ "$before" != "$(generation_of "$dev")" ] || wrong "the generation goes on"
	ctl destroy "$snapshot"
}

# The module can go when its devices have, and not before.
unloading()
{
	local dev

	is_module || skip "the driver is built in"
	watched
	null_blk 1
	attach "$REPLY"
	null_blk 1; dev=$REPLY
	snapshot_of "$dev"
	null_blk_remove "$dev"
	if rmmod blksnap 2>/dev/null; then
		load
		wrong "the module was unloaded while it was in use"
	fi
	destroy_soon
	null_blk_remove /dev/blksnap-test0
	rmmod blksnap
	load
}

cases=()
while read -r way unopened opened; do
	[ -n "$way" ] || continue
	for state in attached taken; do
		for load in idle load; do
			cases+=("${way//_/ }, $state, $load"
				"removal $way $unopened $opened $state $load")
		done
	done
done <<<"$WAYS"

run_cases "${cases[@]}" \
	"null blk, added" "removal null_blk gone gone added idle" \
	"null blk, added, load" "removal null_blk gone gone added load" \
	"part, added" "removal part gone stays added idle" \
	"dm, added" "removal dm gone failing added idle" \
	"disk with an ext4" "mounted_disk ext4" \
	"disk with an xfs" "mounted_disk xfs" \
	"storage" storage_removed \
	"table that is read again" table \
	"partition that is resized" partition_resized \
	"partition that is cut" partition_cut \
	"disk that is cut, and its partition" disk_cut \
	"loop device that gets another offset" moved_in_file \
	"loop device whose file is exchanged" other_backing_file \
	"dm device that gets another table" other_table \
	"dm device whose second target is another one" second_target \
	"dm device that gets another type of target" other_type \
	"dm device whose table has the same content" same_content \
	"loop device that is resized" loop_resized \
	"dm that is resized" dm_resized \
	"loop device that gets another file" other_file \
	"unloading the module" unloading
