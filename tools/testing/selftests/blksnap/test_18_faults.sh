#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Allocations and I/O of the driver fail. A command may fail then, and a snapshot may
# break and say so; the origin must be right, and the image right or an error.
#
# The kernel needs CONFIG_FAULT_INJECTION_DEBUG_FS, CONFIG_FAILSLAB,
# CONFIG_FAIL_PAGE_ALLOC, CONFIG_FAIL_MAKE_REQUEST and
# CONFIG_FAULT_INJECTION_STACKTRACE_FILTER.
#
# Environment:
#   BLKSNAP_SECONDS  how long each case goes on at least, but for the one that is done
#                    when all allocations have failed (default: 5)

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8 LENGTH=${BLKSNAP_SECONDS:-5}
readonly DEBUG=/sys/kernel/debug

#
# Fault injection
#

# able CAPABILITY...: these are to be injected, with nothing in their way. They are off.
able()
{
	local capability

	for capability; do
		[ -d "$DEBUG/$capability" ] || skip "no $capability in this kernel"
		undo set_to 0 "$capability" times
		set_to 0 "$capability" times
		set_to 0 "$capability" verbose
		set_to 100 "$capability" probability
		set_to 0 "$capability" space
		set_to N "$capability" task-filter
		set_to N "$capability" ignore-gfp-wait
		set_to N "$capability" ignore-gfp-highmem
		set_to 0 "$capability" min-order
	done
}

# set_to VALUE CAPABILITY NAME: if there is that
set_to()
{
	[ ! -e "$DEBUG/$2/$3" ] || echo "$1" >"$DEBUG/$2/$3"
}

# on INTERVAL CAPABILITY...: one of so many fails
on()
{
	local interval=$1 capability

	shift
	for capability; do
		set_to "$interval" "$capability" interval
		set_to -1 "$capability" times
	done
}

# off CAPABILITY...
off()
{
	local capability

	for capability; do
		set_to 0 "$capability" times
	done
}

# only_tasks CAPABILITY...: of tasks that ask for it
only_tasks()
{
	local capability

	for capability; do
		set_to Y "$capability" task-filter
		undo set_to N "$capability" task-filter
	done
}

# only_driver CAPABILITY...: of what the driver has called, whoever does it
only_driver()
{
	local capability size address

	is_module || skip "the driver is built in"
	read -r _ size _ _ _ address _ < <(grep '^blksnap ' /proc/modules)
	for capability; do
		[ -e "$DEBUG/$capability/require-start" ] || skip "no stacktrace filter"
		set_to "$address" "$capability" require-start
		set_to "$(printf '%#x' $((address + size)))" "$capability" require-end
		undo set_to 0xffffffffffffffff "$capability" require-end
		undo set_to 0 "$capability" require-start
	done
}

#
# Cases
#

begin_churn()
{
	blksnap_ctl churn direct 65536 $(((SIZE << 20) - 65536)) 65536 "$dev" "$scratch/new" \
		"$scratch/progress.churn" >/dev/null &
	churn=$!
	undo stop "$churn"
}

end_churn()
{
	eventually test -e "$scratch/progress.churn"
	kill -TERM "$churn"
	wait "$churn"
	rm "$scratch/progress.churn"
}

# Each allocation in each ioctl
one_by_one()
{
	local dev churn faults

	watched
	able failslab fail_page_alloc
	[ -e /proc/self/fail-nth ] || skip "no fail-nth"
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	begin_churn
	blksnap_faults "$dev" "$scratch" "$ROOM" "$scratch/progress.faults" >"$scratch/faults" &
	faults=$!
	undo stop "$faults"
	undo detach "$dev"
	while kill -0 "$faults" 2>/dev/null; do
		step
		sleep 0.5
	done
	rm -f "$scratch/progress.faults"
	cat "$scratch/faults"
	wait "$faults"
	result "$(tr '\n' ' ' <"$scratch/faults")"
	end_churn
	# Its own writes are not in the copy.
	tail -c +65537 "$scratch/new" >"$scratch/tail"
	same "$dev" "$scratch/tail" 65536
}

# try COMMAND...: it fails for lack of memory a few times; then there is some again
try()
{
	local i

	for ((i = 0; i < 10; i++)); do
		step
		blksnap_ctl -f "$@" 2>"$scratch/error" && return
		# A tmpfs that cannot make a file says ENOSPC.
		[[ $(<"$scratch/error") = @(ENOMEM|ENOSPC) ]] || break
		failed=$((failed + 1))
	done
	blksnap_ctl "$@"
}

# Some allocations in all ioctls, while the device is written
commands()
{
	local dev churn failed=0 rounds=0 end

	watched
	able failslab fail_page_alloc
	only_tasks failslab fail_page_alloc
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	undo detach "$dev"
	begin_churn
	end=$((SECONDS + LENGTH))
	while [ "$SECONDS" -lt "$end" ]; do
		# A take has some hundred.
		on $((RANDOM % 600 + 50)) failslab fail_page_alloc
		try attach "$dev"
		try create "$scratch" "$ROOM" >"$scratch/id"
		snapshot=$(<"$scratch/id")
		try add "$dev" "$snapshot"
		try take "$snapshot"
		try info "$dev" >/dev/null
		copy_of "$(image_of "$dev")" "$scratch/old"
		step
		same "$(image_of "$dev")" "$scratch/old"
		equal 0 "$(error_of "$dev")" "the snapshot's error"
		try destroy "$snapshot"
		try detach "$dev"
		rounds=$((rounds + 1))
	done
	off failslab fail_page_alloc
	end_churn
	same "$dev" "$scratch/new"
	result "$rounds rounds, $failed calls failed"
}

# breaking CAPABILITY...: some fail while old data is saved and read
breaking()
{
	local dev churn under broken=0 lost=0 rounds=0 end image

	watched
	able "$@"
	only_driver "$@"
	null_blk "$SIZE"; dev=$REPLY
	null_blk "$((2 * SIZE))"; under=$REPLY
	# That is for I/O.
	echo 1 >"/sys/block/${dev#/dev/}/make-it-fail"
	echo 1 >"/sys/block/${under#/dev/}/make-it-fail"
	filled "$dev" "$SIZE" "$scratch/new"
	attach "$dev"
	undo destroy_current
	end=$((SECONDS + LENGTH))
	while [ "$SECONDS" -lt "$end" ]; do
		cp "$scratch/new" "$scratch/old"
		snapshot=$(ctl create "$under" 0)
		ctl add "$dev" "$snapshot"
		ctl take "$snapshot"
		image=$(image_of "$dev")
		on $((10 + RANDOM % 400)) "$@"
		begin_churn
		right_or_error
		right_or_error
		off "$@"
		end_churn
		step
		if [ "$(error_of "$dev")" != 0 ]; then
			expect EIO ctl same "$image" "$scratch/old"
			# Those of lost chunks come first.
			until ctl wait "$snapshot" 1000 | grep -qx 'code 0'; do step; done
			broken=$((broken + 1))
		elif [ "$(figure "$image" lost_chunks)" = 0 ]; then
			same "$image" "$scratch/old"
		else
			expect EIO ctl same "$image" "$scratch/old"
			ctl wait "$snapshot" 1000 | grep -qx 'code 33'
			right_but_lost
			lost=$((lost + 1))
		fi
		same "$dev" "$scratch/new"
		ctl destroy "$snapshot"
		snapshot=
		rounds=$((rounds + 1))
		step
	done
	result "$rounds snapshots, $broken of them broken, $lost with lost chunks"
}

destroy_current()
{
	[ -z "${snapshot:-}" ] || destroy "$snapshot"
}

# What can be read of the image is right.
right_or_error()
{
	ctl same "$image" "$scratch/old" >"$scratch/result" 2>&1 && return
	case $(tail -n 1 "$scratch/result") in
	EIO | ENOMEM) ;;
	*) wrong "$(<"$scratch/result")" ;;
	esac
}

# No more MiB than there are lost chunks cannot be read, and the others are right.
right_but_lost()
{
	local at failed=0

	for ((at = 0; at < SIZE; at++)); do
		dd if="$scratch/old" of="$scratch/piece" bs=1M skip="$at" count=1 status=none
		if ! ctl same "$image" "$scratch/piece" $((at << 20)) >"$scratch/result" 2>&1; then
			equal EIO "$(tail -n 1 "$scratch/result")" "MiB $at of the image"
			failed=$((failed + 1))
		fi
	done
	[ "$failed" -le "$(figure "$image" lost_chunks)" ] || wrong "$failed MiB cannot be read"
}

run_cases \
	"each allocation of each command" one_by_one \
	"commands while memory is short" commands \
	"copies while memory is short" "breaking failslab fail_page_alloc" \
	"copies with errors of the devices" "breaking fail_make_request"
