#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# A 32-bit program can do all that a 64-bit one can, with structures that are laid out
# as on i386, and the answers are the same.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# Run before anything is made.
need_compat()
{
	local status=0

	[ "$(uname -m)" = x86_64 ] || skip "not on $(uname -m)"
	[ -x "$here/blksnap_compat" ] || skip "blksnap_compat could not be compiled"
	# 126: the kernel cannot run it.
	"$here/blksnap_compat" version || status=$?
	[ "$status" -ne 126 ] || skip "no 32-bit programs in this kernel"
}

ctl32()
{
	blksnap_compat "$@"
}

# same_answer COMMAND...: with both programs, be it an error
same_answer()
{
	diff <(ctl "$@" 2>&1) <(ctl32 "$@" 2>&1) || wrong "$*: the answers differ"
}

version()
{
	need_compat
	same_answer version
}

attach_and_detach()
{
	local dev

	need_compat
	null_blk 16; dev=$REPLY
	expect ENOENT ctl32 detach "$dev"
	expect ENOENT ctl32 cbtinfo "$dev"
	undo detach "$dev"
	ctl32 attach "$dev"
	ctl cbtinfo "$dev"
	expect EALREADY ctl attach "$dev"
	expect EALREADY ctl32 attach "$dev"
	ctl32 detach "$dev"
	expect ENOENT ctl detach "$dev"
	ctl attach "$dev"
	expect EALREADY ctl32 attach "$dev"
	ctl32 detach "$dev"
	expect ENOTTY ctl32 attach /dev/null
}

tracking()
{
	local dev

	need_compat
	null_blk 16; dev=$REPLY
	attach "$dev"
	take "$dev"
	same_answer cbtinfo "$dev"
	ctl32 cbtdirty "$dev" 128:1 1024:256
	equal 1 "$(ctl cbtmap "$dev" 1 1)" "a block that is dirty"
	equal "1 1 0" "$(ctl cbtmap "$dev" 8 3 | xargs)" "blocks that are dirty"
	same_answer cbtmap "$dev" 0 256
	same_answer cbtmap "$dev" 200 56
	same_answer cbtmap "$dev" 200 57
	same_answer cbtmap "$dev" 0xffffffff 1
	same_answer cbttakes "$dev"
	same_answer cbttakes "$dev" 1
	same_answer cbttakes "$dev" 0
	expect ENODATA ctl32 cbttakes "$dev" 0
	same_answer cbtdirty "$dev" 32768:1
	same_answer cbtdirty "$dev" 0xffffffffffffffff:2
}

snapshot()
{
	local dev old=$scratch/old image

	need_compat
	null_blk 8; dev=$REPLY
	filled "$dev" 8 "$old"
	undo detach "$dev"
	ctl32 attach "$dev"
	new_storage
	snapshot=$(ctl32 create "$storage" "$ROOM")
	undo destroy "$snapshot"
	equal "$snapshot" "$(ctl collect)" "the ids"
	same_answer info "$dev"
	ctl32 add "$dev" "$snapshot"
	expect EALREADY ctl32 add "$dev" "$snapshot"
	same_answer info "$dev"
	ctl32 take "$snapshot"
	expect EALREADY ctl32 take "$snapshot"
	expect EBUSY ctl32 detach "$dev"
	same_answer info "$dev"
	same_answer wait "$snapshot" 1
	image=$(image_of "$dev")
	put direct 0 $((4 << 20)) "$dev"
	same "$image" "$old"
	ctl32 destroy "$snapshot"
	expect ENODEV ctl32 destroy "$snapshot"
	expect ESRCH ctl32 take "$snapshot"
	expect ESRCH ctl32 wait "$snapshot" 1
	[ ! -b "$image" ]
	ctl32 detach "$dev"
}

collect()
{
	local i

	need_compat
	same_answer collect
	for i in 1 2 3; do
		new_storage
		create "$storage" 2048
	done
	same_answer collect
	equal 3 "$(ctl32 collect | wc -l)" "the ids"
	for i in 1 2; do
		same_answer collect "$i"
		expect ENODATA ctl32 collect "$i"
	done
	equal 3 "$(ctl32 collect 2 2>/dev/null | head -1)" "the number needed"
	equal 3 "$(ctl32 collect 0)" "the number"
}

event()
{
	local dev

	need_compat
	null_blk 8; dev=$REPLY
	attach "$dev"
	new_storage
	create "$storage" 64
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	put direct 0 $((1 << 20)) "$dev"
	ctl32 wait "$snapshot" 10000 | grep -x 'code 1'
	equal "error -28" "$(ctl32 info "$dev" | head -1)" "the error"
	same_answer info "$dev"
}

run_cases \
	"version" version \
	"attach and detach" attach_and_detach \
	"change tracking" tracking \
	"snapshot" snapshot \
	"list of snapshots" collect \
	"event" event
