#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck disable=SC2016,SC2154,SC2317,SC2329
#
# The blksnap command with the driver: what cargo test can only show with a kernel of files.
# Runs beside the kselftests, whose functions it uses.

# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=16

blksnap()
{
	step
	command blksnap "$@"
}

# json FILTER FILE: the value of a field, without jq, which may not be there
json()
{
	python3 -c 'import json, sys
value = [json.loads(line) for line in open(sys.argv[2]) if line.strip()]
print(eval(sys.argv[1], {"all": value, "first": value[0] if value else None}))' "$@"
}

begin()
{
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	undo detach "$dev"
	blksnap attach "$dev"
}

# created ARGUMENT...: takes a snapshot
created()
{
	snapshot=$(blksnap create "$@" "$dev")
	undo destroy "$snapshot"
	blksnap take "$snapshot"
	image=$(blksnap image "$dev")
}

events()
{
	local follower

	begin
	null_blk 8
	created --store "$REPLY" --low-space 4M
	blksnap events "$snapshot" >"$scratch/none"
	equal "" "$(<"$scratch/none")" "the events"
	command blksnap events "$snapshot" --follow --json >"$scratch/events" &
	follower=$!
	undo stop "$follower"
	put direct 0 $((6 << 20)) "$dev"
	eventually grep -q low-space "$scratch/events"
	same "$image" "$scratch/old"
	put direct $((6 << 20)) $((10 << 20)) "$dev"
	eventually grep -q no-space "$scratch/events"
	ctl destroy "$snapshot"
	ends 3 "$follower"
	equal low-space "$(json 'first["kind"]' "$scratch/events")" "the first event"
	equal "$snapshot" "$(json 'first["id"]' "$scratch/events")" "its snapshot"
	json 'all[-1]["kind"]' "$scratch/events"
}

# ends CODE PROCESS
ends()
{
	local status=0

	step
	wait "$2" || status=$?
	equal "$1" "$status" "the exit code"
}

# Whoever follows ends with the snapshot, without an error if it was intact.
events_end()
{
	local follower

	begin
	created --store "$scratch" --limit 32M
	command blksnap events "$snapshot" --follow >"$scratch/events" &
	follower=$!
	undo stop "$follower"
	sleep 1
	ctl destroy "$snapshot"
	ends 0 "$follower"
	equal "" "$(<"$scratch/events")" "the events"
}

grow()
{
	local at

	begin
	created --store "$scratch" --grow 4M
	for ((at = 0; at < SIZE; at++)); do
		put direct $((at << 20)) $((1 << 20)) "$dev"
		eventually left_at_least 4096
	done
	same "$image" "$scratch/old"
	blksnap status --json "$dev" >"$scratch/status"
	json 'first["snapshots"][0]["storage"]' "$scratch/status"
	ctl destroy "$snapshot"
	eventually no_watcher
}

no_watcher()
{
	# What has ended is there until the machine's init looks after it.
	! pgrep -x -r D,R,S,T blksnap-grow
}

# It stops at --max, and then the snapshot is what it would be without.
grow_to_the_end()
{
	begin
	created --store "$scratch" --grow 2M --max 4M
	put direct 0 $((3 << 19)) "$dev"
	eventually grown_to 8192
	put direct $((3 << 19)) $((2 << 20)) "$dev"
	sleep 2
	same "$image" "$scratch/old"
	grown_to 8192
	put direct $((3 << 20)) $((8 << 20)) "$dev"
	eventually broken
	expect EIO ctl same "$image" "$scratch/old"
	ctl destroy "$snapshot"
	eventually no_watcher
}

grown_to()
{
	[ "$(space total)" = "$1" ]
}

append()
{
	local store

	begin
	created --store "$scratch" --limit 2M
	null_blk 32; store=$REPLY
	blksnap append "$snapshot" "$store" --range 4M:2M --range 1M:2M
	equal $((6 << 11)) "$(space total)" "the space"
	blksnap append "$snapshot" "$store" --range 8M:16M
	put direct 0 $((SIZE << 20)) "$dev"
	same "$image" "$scratch/old"
	if blksnap append "$snapshot" "$store" --range 8M:1M 2>"$scratch/error"; then
		wrong "the same range was appended again"
	fi
	grep -q 'what to do' "$scratch/error"
	if blksnap append "$snapshot" "$dev" --overwrite 2>"$scratch/error"; then
		wrong "the device became its own storage"
	fi
	grep -q 'what to do' "$scratch/error"
}

# A snapshot that grows while a command writes to the device
snapshot_grows()
{
	begin
	blksnap snapshot "$dev" --store "$scratch" --grow 4M -- bash -c '
		for ((at = 0; at < 16; at++)); do
			dd if=/dev/urandom of="$BLKSNAP_DEVICE_1" bs=1M count=1 seek=$at \
				oflag=direct conv=notrunc status=none || exit
			sleep 0.5
		done
		cmp "$BLKSNAP_IMAGE_1" '"$scratch/old"
	equal "" "$(ctl collect)" "the snapshots"
}

run_cases \
	"command: events" events \
	"command: events end with the snapshot" events_end \
	"command: storage that grows" grow \
	"command: storage that grows to its end" grow_to_the_end \
	"command: storage that is appended" append \
	"command: snapshot that grows" snapshot_grows
