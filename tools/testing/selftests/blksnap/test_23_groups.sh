#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Control groups: what a snapshot reads on behalf of a group is accounted to it, a slow group does
# not delay the writes of others, and the maps are the memory of who created the snapshot.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly CHUNK=65536

# begin SHIFT [ATTRIBUTE=VALUE]...: a disk of 64 MiB for snapshots with chunks of 2^SHIFT bytes, and
# a tree of groups at $tree
begin()
{
	reloaded "chunk_minimum_shift=$1"
	tree=$scratch/group
	mkdir "$tree"
	undo rmdir "$tree"
	mount -t cgroup2 none "$tree" || skip "no cgroup2"
	undo umount "$tree"
	echo +io 2>/dev/null >"$tree/cgroup.subtree_control" || skip "no groups for I/O"
	null_blk 64 "${@:2}"; dev=$REPLY
	filled "$dev" 64 "$scratch/old"
	number=$(<"/sys/class/block/${dev#/dev/}/dev")
}

# group NAME FILE VALUE: a group, with the value in one of its files
group()
{
	mkdir "$tree/$1"
	undo eventually rmdir "$tree/$1"
	undo eval "echo 1 >'$tree/$1/cgroup.kill'"
	echo "$3" 2>/dev/null >"$tree/$1/$2" || skip "no $2"
}

# in_group NAME COMMAND...: in a shell of its own
in_group()
{
	echo "$BASHPID" >"$tree/$1/cgroup.procs"
	"${@:2}"
}

# touch_chunks FIRST COUNT: writes 4 KiB to each of COUNT chunks, one of five, so that nothing is
# copied ahead
touch_chunks()
{
	local i

	for ((i = $1; i < $1 + $2; i++)); do
		ctl put direct $((5 * i * CHUNK)) 4096 "$dev"
	done
}

# read_by NAME: the bytes that the group has read from the disk
read_by()
{
	sed -n "s/^$number .*rbytes=\([0-9]*\).*/\1/p" "$tree/$1/io.stat"
}

# Each write of 4 KiB needs a read of 64 KiB, which is accounted to the group. The group pays for
# it later.
accounted()
{
	local begin reader

	begin 16
	group slow io.max "$number rbps=8192"
	snapshot_of "$dev"
	begin=$(milliseconds)
	(in_group slow touch_chunks 0 48)
	begin=$(($(milliseconds) - begin))
	result "48 writes of 4 KiB took $begin ms, and read $(read_by slow) bytes"
	equal $((48 * CHUNK)) "$(read_by slow)" "the bytes that the group has read"
	# They would take 384 s.
	[ "$begin" -le 120000 ] || wrong "writes are delayed by a limit of reads"
	in_group slow dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct status=none &
	reader=$!
	sleep 1
	jobs -rp | grep -qx "$reader" ||
		wrong "what was read on behalf of a group does not count"
	echo "$number rbps=max" >"$tree/slow/io.max"
	wait "$reader"
	same "$(image_of "$dev")" "$scratch/old"
}

# What a slow group has claimed, others can write, and the snapshot can be destroyed.
overtaken()
{
	local begin pids=() i

	begin 16
	group slow io.max "$number rbps=4096"
	snapshot_of "$dev"
	# 2 MiB at 4 KiB/s are 8 minutes.
	begin=$(milliseconds)
	for ((i = 0; i < 32; i++)); do
		in_group slow ctl put direct $((i * CHUNK)) 4096 "$dev" &
		pids+=($!)
	done
	for ((i = 0; i < 32; i++)); do
		ctl put direct $((i * CHUNK + 8192)) 4096 "$dev"
	done
	wait "${pids[@]}"
	same "$(image_of "$dev")" "$scratch/old"
	ctl destroy "$snapshot"
	begin=$(($(milliseconds) - begin))
	result "32 writes each of two groups took $begin ms"
	[ "$begin" -le 60000 ] || wrong "a slow group delays others"
}

# iocost delays the task that submits. That must not be one that others wait for.
weighed()
{
	local without with i

	begin 12 irqmode=2 completion_nsec=100000
	[ -e "$tree/io.cost.qos" ] || skip "no iocost"
	echo "$number enable=1 ctrl=user rpct=0 rlat=2000 wpct=0 wlat=2000 min=100 max=100" \
		>"$tree/io.cost.qos"
	undo eval "echo '$number enable=0' >'$tree/io.cost.qos'"
	echo "$number ctrl=user model=linear rbps=100000000 rseqiops=500 rrandiops=500" \
		"wbps=100000000 wseqiops=500 wrandiops=500" >"$tree/io.cost.model"
	group heavy io.weight 1000
	group light io.weight 10
	for ((i = 1; i <= 8; i++)); do
		in_group light over_and_over $((i * 1024)) &
	done
	sleep 2
	without=$(timed)
	snapshot_of "$dev"
	with=$(timed)
	result "microseconds per write of the heavy group: $without; with a snapshot: $with"
	[ "$(p99 "$with")" -le $(($(p99 "$without") * 2 + 20000)) ] ||
		wrong "a light group delays a heavy one"
}

# over_and_over BLOCK: writes 1024 blocks of 4 KiB from there on
over_and_over()
{
	trap - ERR EXIT
	while :; do
		dd if=/dev/zero of="$dev" bs=4k count=1024 seek="$1" oflag=direct conv=notrunc \
			status=none
	done
}

# How long the heavy group's writes of 1024 blocks take
timed()
{
	(in_group heavy ctl latency 0 1024 "$dev") | paste -sd ' '
}

# p99 LATENCIES
p99()
{
	local p99

	read -r _ _ _ p99 _ <<<"$1"
	echo "$p99"
}

# A far write needs a page for the bits, 3 KiB for the vectors of extents, and one of these.
REGION_BYTES=$((4096 + 3072 + 8))

# owned WRITES: a snapshot of a disk with room for these far writes, created by the group "owner"
owned()
{
	begin 12
	echo +memory 2>/dev/null >"$tree/cgroup.subtree_control" || skip "no groups for memory"
	null_blk $(($1 * 128)); dev=$REPLY
	attach "$dev"
	group owner memory.max max
	echo "$BASHPID" >"$tree/owner/cgroup.procs"
	take "$dev"
	echo "$BASHPID" >"$tree/cgroup.procs"
}

# The group's kernel memory. Processors keep what they may charge next.
kernel_memory()
{
	sed -n 's/^kernel //p' "$tree/owner/memory.stat"
}

grown_by()
{
	[ $(($(kernel_memory) - $1)) -ge "$2" ]
}

charged()
{
	local before regions=300

	owned $regions
	before=$(kernel_memory)
	far_writes "$dev" 0 $regions
	eventually grown_by "$before" $((regions * REGION_BYTES)) ||
		wrong "$(($(kernel_memory) - before)) bytes are charged"
	result "$(($(kernel_memory) - before)) bytes of memory for $regions writes"
	grown_by "$before" $((2 * regions * REGION_BYTES)) && wrong "that is too much"
	ctl destroy "$snapshot"
	eventually eval "! grown_by $before $((regions * REGION_BYTES / 4))" ||
		wrong "$(($(kernel_memory) - before)) bytes are still charged"
}

# Neither is a task killed, nor does a write wait, nor fail.
limited()
{
	local image

	owned 300
	: >"$scratch/new"
	image=$(image_of "$dev")
	far_writes "$dev" 0 20 "$scratch/new"
	eventually figure_is "$image" copy_bytes 0
	equal 0 "$(error_of "$dev")" "the error"
	# Something to be killed
	in_group owner sleep 1000 &
	sleep 1
	echo $(($(<"$tree/owner/memory.current") + (512 << 10))) >"$tree/owner/memory.max"
	far_writes "$dev" 20 300 "$scratch/new"
	eventually error_is "$dev" -12 || wrong "the image did not break"
	far_content "$dev" 0 300 4096 >"$scratch/there"
	far_content "$scratch/new" 0 300 4096 >"$scratch/written"
	same "$scratch/there" "$scratch/written"
	grep -qx 'oom_kill 0' "$tree/owner/memory.events" || wrong "a task was killed"
	ctl destroy "$snapshot"
	# Another one is not limited.
	take "$dev"
	far_writes "$dev" 0 100
	equal 0 "$(error_of "$dev")" "the error of the next one"
}

# The group is gone, and its parent has what it had.
removed()
{
	owned 100
	rmdir "$tree/owner" || wrong "the group is in use"
	mkdir "$tree/owner"
	far_writes "$dev" 0 100
	equal 0 "$(error_of "$dev")" "the error"
	far_content "$(image_of "$dev")" 0 100 4096 >"$scratch/image"
	cmp -n $((100 << 12)) "$scratch/image" /dev/zero
	ctl destroy "$snapshot"
}

run_cases \
	"reads are accounted to the group" accounted \
	"chunks of a slow group" overtaken \
	"weights of groups" weighed \
	"maps are the memory of who created the snapshot" charged \
	"maps of a group without memory" limited \
	"maps of a group that was removed" removed
