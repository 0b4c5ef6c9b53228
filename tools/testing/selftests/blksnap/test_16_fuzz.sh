#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Right, nearly right and wrong calls of all ioctls at once; afterwards all of it still
# works.
#
# environment: BLKSNAP_FUZZ_CALLS (default 20000), BLKSNAP_FUZZ_SEED (default: random),
# BLKSNAP_FUZZ_SECONDS (ends it earlier)

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# devices: a disk with partitions, one whose driver takes bios, and one that data can be
# stored on, as $devices
devices()
{
	devices=()
	partitioned 32 discard=1
	devices+=("$REPLY" "${REPLY}p1" "${REPLY}p2")
	if command -v dmsetup >/dev/null; then
		null_blk 16
		dm_linear blksnap-fuzz "$REPLY" 0 32768
		devices+=("$REPLY")
	fi
	loop 24
	devices+=("$REPLY")
}

fuzz()
{
	local devices dir status=0

	devices
	dir=$(mktemp -d "$scratch/fuzz.XXXXXX")
	undo rmdir "$dir"
	blksnap_fuzz -n "${BLKSNAP_FUZZ_CALLS:-20000}" -s "${BLKSNAP_FUZZ_SEED:-0}" \
		-t "${BLKSNAP_FUZZ_SECONDS:-0}" "$dir" "${devices[@]}" \
		>"$scratch/fuzz.log" 2>&1 || status=$?
	ktap_print_log
	equal 0 "$status" "the status"
	equal "" "$(ctl collect)" "the snapshots"
	works_still "${devices[@]}"
}

# The numbers are worth a look even if all is well.
ktap_print_log()
{
	sed 's/^/# /' "$scratch/fuzz.log" >&9
}

works_still()
{
	local dev i=0

	for dev; do
		expect ENOENT ctl detach "$dev"
		attach "$dev"
	done
	# Not a disk and its partitions at once: their writes meet.
	for dev in "${@:2}"; do
		filled "$dev" 4 "$scratch/old$i"
		i=$((i + 1))
	done
	take "$@"
	i=0
	for dev in "${@:2}"; do
		put direct 0 $((2 << 20)) "$dev"
		same "$(image_of "$dev")" "$scratch/old$i"
		equal 0 "$(error_of "$dev")" "the error of $dev"
		i=$((i + 1))
	done
	ctl destroy "$snapshot"
}

exec 9>&1
run_cases "random calls of all ioctls" fuzz
