#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# What makes queues, file systems or memory stand still for a moment goes on all the
# time, while snapshots are taken again and again of a device that is being written. None of
# that may end in a deadlock.
#
# Environment:
#   BLKSNAP_SECONDS  how long each case goes on (default: 5)

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly LENGTH=${BLKSNAP_SECONDS:-5}

# What a case sets up: the origin, what is written, which is the origin or a file on it,
# and how many bytes from its beginning on
dev='' target='' bytes=$((16 << 20))

# The functions that write until they are terminated, with their arguments
writers=()

# Where storages go, and how many sectors they get
store='' room=$ROOM

pids=() tormentor='' rounds=0

# on_raw DEV: the whole device is written
on_raw()
{
	dev=$1
	target=$1
	store=$scratch
	writers=(
		"churn direct 0 $((bytes / 2)) 4096 new"
		"churn direct $((bytes / 2)) $((bytes / 2)) 262144 new"
	)
	fill_target
}

# on_file TYPE DEV: a file is written; $where is its file system
on_file()
{
	dev=$2
	store=$scratch
	make_fs "$1" "$dev"
	mounted "$dev"; where=$REPLY
	target=$where/file
	: >"$target"
	writers=(
		"churn direct 0 $((bytes / 2)) 65536 new"
		"churn buffered $((bytes / 2)) $((bytes / 2)) 262144 new"
	)
	fill_target
}

fill_target()
{
	: >"$scratch/new"
	put buffered 0 "$bytes" "$target" "$scratch/new"
}

# churn FLAGS OFFSET BYTES MAX COPY
churn()
{
	limited blksnap_ctl churn "${@:1:4}" "$target" "$scratch/$5" "$scratch/progress.$BASHPID"
}

# limited COMMAND...: in the memory group, if there is one
limited()
{
	[ ! -e "$scratch/group/blksnap" ] || echo "$BASHPID" >"$scratch/group/blksnap/cgroup.procs"
	exec "$@"
}

# memory_group MEBIBYTES: a group that may have so much, and half as much again while what it
# has more is written: with a hard limit alone a disk that stands still for a second is
# enough for the kernel to kill what is in the group, whether there is a snapshot or not.
memory_group()
{
	mkdir "$scratch/group"
	undo rmdir "$scratch/group"
	mount -t cgroup2 none "$scratch/group" || skip "no cgroup2"
	undo umount "$scratch/group"
	echo +memory 2>/dev/null >"$scratch/group/cgroup.subtree_control" ||
		skip "no memory groups"
	mkdir "$scratch/group/blksnap"
	undo eventually rmdir "$scratch/group/blksnap"
	echo "$1M" >"$scratch/group/blksnap/memory.high"
	echo "$(($1 * 3 / 2))M" >"$scratch/group/blksnap/memory.max"
}

begin_writers()
{
	local writer

	for writer in "${writers[@]}"; do
		# shellcheck disable=SC2086
		$writer >>"$scratch/writes" &
		pids+=($!)
	done
}

end_writers()
{
	local pid

	for pid in "${pids[@]}"; do
		# Not before it can be told so
		eventually test -e "$scratch/progress.$pid"
		kill -TERM "$pid"
		wait "$pid"
		rm -f "$scratch/progress.$pid"
	done
	pids=()
}

new_snapshot()
{
	snapshot=$(ctl create "$store" "$room")
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	step
}

drop_snapshot()
{
	if [ -n "${snapshot:-}" ]; then
		destroy "$snapshot"
		snapshot=
	fi
}

# $shown is the part of the image that is looked at.
show_image()
{
	local image

	image=$(image_of "$dev")
	shown=$image
	if [ "$target" != "$dev" ]; then
		shown=$scratch/inside/file
		case $(findmnt -no FSTYPE "$where") in
		xfs)
			mount -o ro,norecovery,nouuid "$image" "$scratch/inside"
			;;
		*)
			e2fsck -fn "$image"
			mount -o ro "$image" "$scratch/inside"
			;;
		esac
	fi
	step
}

# compare COPY: twice, with some time between
compare()
{
	same "$shown" "$1"
	step
	same "$shown" "$1"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	unmount "$scratch/inside"
	ctl destroy "$snapshot"
	snapshot=
	rounds=$((rounds + 1))
	step
}

# A snapshot while nobody writes: what its image has to be is known.
still()
{
	end_writers
	if [ "$target" = "$dev" ]; then
		copy_of "$dev" "$scratch/old"
	else
		cp "$scratch/new" "$scratch/old"
	fi
	new_snapshot
	begin_writers
	show_image
	compare "$scratch/old"
}

# A snapshot in the middle of writes: what its image is does not change.
running()
{
	new_snapshot
	show_image
	copy_of "$shown" "$scratch/old"
	compare "$scratch/old"
}

# stalls KIND... -- COMMAND...: snapshots of these kinds in turn, while the command is
# repeated
stalls()
{
	local kinds=() end

	while [ "$1" != -- ]; do
		kinds+=("$1")
		shift
	done
	shift
	mkdir "$scratch/inside"
	undo rmdir "$scratch/inside"
	: >"$scratch/writes"
	rm -f "$scratch/enough"
	attach "$dev"
	undo end_all
	begin_writers
	repeat "$@" &
	tormentor=$!
	end=$((SECONDS + LENGTH))
	while [ "$SECONDS" -lt "$end" ]; do
		"${kinds[rounds % ${#kinds[@]}]}"
		kill -0 "$tormentor"
	done
	: >"$scratch/enough"
	wait "$tormentor"
	tormentor=''
	end_writers
	step
	if [ -e "$scratch/new" ]; then
		sync -f "$target"
		same "$target" "$scratch/new"
	fi
	result "$rounds snapshots, $(wc -l <"$scratch/times") times $*," \
		"$(($(paste -sd + "$scratch/writes"))) writes"
	[ "$rounds" -gt 0 ]
}

# Nothing is left that could be in the way of what is undone next.
end_all()
{
	: >"$scratch/enough"
	if [ "${#pids[@]}" -gt 0 ]; then
		kill -KILL "${pids[@]}"
		wait "${pids[@]}"
	fi
	[ -z "$tormentor" ] || wait "$tormentor"
	rm -f "$scratch"/progress.* "$scratch/new" "$scratch/old"
	unmount "$scratch/inside"
	drop_snapshot
}

repeat()
{
	: >"$scratch/times"
	while [ ! -e "$scratch/enough" ]; do
		"$@"
		echo >>"$scratch/times"
		: >"$scratch/progress.repeat"
	done
	rm "$scratch/progress.repeat"
}

# A moment of up to a tenth of a second
moment()
{
	sleep "0.0$((RANDOM % 10))"
}

freezing()
{
	need fsfreeze
	watched
	null_blk "$2" irqmode=2 completion_nsec=100000
	on_file "$1" "$REPLY"
	undo thaw
	stalls still running -- freeze_and_thaw
}

freeze_and_thaw()
{
	# Unless a take has frozen it
	if fsfreeze -f "$where" 2>/dev/null; then
		moment
		fsfreeze -u "$where"
	fi
	moment
}

thaw()
{
	fsfreeze -u "$where" 2>/dev/null || true
}

# The origin is swap, and more memory is in use than there is.
swap()
{
	need mkswap swapon sfdisk
	watched
	memory_group 16
	if [ -n "${BLKSNAP_DISKS:-}" ]; then
		disk 0
		echo 2048,131072 | sfdisk -q "$REPLY"
		undo wipefs -qaf "$REPLY"
		eventually test -b "${REPLY}1"
		dev=${REPLY}1
	else
		null_blk 64 irqmode=2 completion_nsec=100000 discard=1; dev=$REPLY
	fi
	target=$dev
	# Memory is what there is none of.
	null_blk 160; store=$REPLY
	room=0
	writers=("hog 48")
	mkswap "$dev" >/dev/null
	swapon --discard "$dev"
	undo swapoff "$dev"
	stalls running -- reclaim
}

# hog MEBIBYTES
hog()
{
	limited blksnap_ctl hog "$1" "$scratch/progress.$BASHPID"
}

reclaim()
{
	moment
	echo 4M 2>/dev/null >"$scratch/group/blksnap/memory.reclaim" || true
}

# set_to FILE VALUE
set_to()
{
	echo "$2" >"$1"
}

# dirty_limit BYTES: of all page cache that is to be written back
dirty_limit()
{
	local vm=/proc/sys/vm

	# That unsets the limits in bytes.
	undo set_to $vm/dirty_ratio "$(<$vm/dirty_ratio)"
	undo set_to $vm/dirty_background_ratio "$(<$vm/dirty_background_ratio)"
	echo $(($1 / 4)) >$vm/dirty_background_bytes
	echo "$1" >$vm/dirty_bytes
}

# The origin is written back all the time, since little may be dirty.
writeback()
{
	watched
	memory_group 24
	dirty_limit $((4 << 20))
	bytes=$((32 << 20))
	null_blk 128 irqmode=2 completion_nsec=100000
	on_file ext4 "$REPLY"
	writers=(
		"churn buffered 0 $((bytes / 2)) 1048576 new"
		"churn buffered $((bytes / 2)) $((bytes / 2)) 65536 new"
	)
	stalls still running -- reclaim
}

# frozen_queue COMMAND...: it freezes the queue, while the same area gets small writes and
# is discarded in one piece
frozen_queue()
{
	watched
	null_blk 76 irqmode=2 completion_nsec=100000 discard=1
	on_raw "$REPLY"
	room=$((2 * ROOM))
	: >"$scratch/other"
	undo rm "$scratch/other"
	writers+=(
		"churn direct $bytes $((60 << 20)) 4096 other"
		"churn direct $bytes $((60 << 20)) 4096 other"
		"discard_on $bytes $((60 << 20))"
	)
	stalls running still -- "$@"
}

# discard_on OFFSET BYTES
discard_on()
{
	local done=0

	trap 'echo $done; exit' TERM
	while :; do
		discard "$dev" -o "$1" -l "$2"
		done=$((done + 1))
		: >"$scratch/progress.$BASHPID"
	done
}

schedulers()
{
	frozen_queue switch_schedulers
}

switch_schedulers()
{
	local queue=/sys/block/${dev#/dev/}/queue scheduler

	for scheduler in $(tr -d '[]' <"$queue/scheduler"); do
		echo "$scheduler" >"$queue/scheduler"
		echo 8 >"$queue/nr_requests"
		echo 32 >"$queue/nr_requests"
	done
}

hw_queues()
{
	[ "$(nproc)" -gt 1 ] || skip "only one processor"
	frozen_queue switch_hw_queues
}

switch_hw_queues()
{
	local config=/sys/kernel/config/nullb/${dev#/dev/}

	echo 2 >"$config/submit_queues"
	echo 1 >"$config/submit_queues"
	moment
}

suspending()
{
	watched
	null_blk 16 irqmode=2 completion_nsec=100000
	dm_linear blksnap-stalls "$REPLY" 0 32768
	on_raw "$REPLY"
	undo dmsetup resume --noudevsync blksnap-stalls
	stalls still running -- suspend_and_resume
}

suspend_and_resume()
{
	local flags

	for flags in "" --noflush --nolockfs "--noflush --nolockfs"; do
		# shellcheck disable=SC2086
		dmsetup suspend --noudevsync $flags blksnap-stalls
		moment
		dmsetup resume --noudevsync blksnap-stalls
		moment
	done
}

reloading()
{
	watched
	null_blk 64 irqmode=2 completion_nsec=100000
	dm_linear blksnap-stalls "$REPLY" 0 131072
	on_file ext4 "$REPLY"
	undo dmsetup resume --noudevsync blksnap-stalls
	stalls still running -- reload_table
}

reload_table()
{
	dmsetup table blksnap-stalls | dmsetup reload blksnap-stalls
	dmsetup suspend --noudevsync blksnap-stalls
	moment
	dmsetup resume --noudevsync blksnap-stalls
	moment
}

# The page cache is full of what cannot be written before old data is stored, and the storage goes
# by way of the page cache, too.
dirty_pages()
{
	local dev begin duration held store

	reloaded copy_memory=1 copy_ahead=0 hold_writers=60
	null_blk 128; dev=$REPLY
	null_blk 256
	make_fs ext4 "$REPLY"
	mounted "$REPLY" -o data=journal; store=$REPLY
	dirty_limit $((8 << 20))
	attach "$dev"
	create "$store" $((200 << 11))
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	begin=$(milliseconds)
	dd if=/dev/zero of="$dev" bs=64k count=512 conv=fsync status=none
	duration=$(($(milliseconds) - begin))
	held=$(ctl space "$snapshot" | awk '$1 == "held" { print $2 }')
	result "32 MiB took $duration ms, for $held of which the writers were held"
	equal 0 "$(error_of "$dev")" "the error"
	[ $((held * 2)) -lt "$duration" ] || wrong "the writers were held for $held of $duration ms"
}

run_cases \
	"page cache full of dirty pages" dirty_pages \
	"ext4 that is frozen" "freezing ext4 64" \
	"xfs that is frozen" "freezing xfs 320" \
	"swap" swap \
	"writeback" writeback \
	"schedulers and queue depth" schedulers \
	"hardware queues" hw_queues \
	"dm that is suspended" suspending \
	"dm that gets a table, with an ext4" reloading
