#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Numbers and layouts that clients of the out-of-tree module rely on, the version,
# and the list of snapshots.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

values()
{
	cat <<-END
	BLKFILTER_ATTACH 0xc030128e
	BLKFILTER_DETACH 0xc020128f
	BLKFILTER_CTL 0xc0301290
	IOCTL_BLKSNAP_VERSION 0x80085600
	IOCTL_BLKSNAP_SNAPSHOT_CREATE 0xc0205601
	IOCTL_BLKSNAP_SNAPSHOT_DESTROY 0x40105602
	IOCTL_BLKSNAP_SNAPSHOT_TAKE 0x40105603
	IOCTL_BLKSNAP_SNAPSHOT_COLLECT 0x80105604
	IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT 0x90005605
	IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY 0xc0185620
	IOCTL_BLKSNAP_STORAGE_APPEND 0x40285621
	IOCTL_BLKSNAP_STORAGE_LIMIT 0x40185622
	IOCTL_BLKSNAP_STORAGE_LOW_SPACE 0x40185623
	IOCTL_BLKSNAP_STORAGE_INFO 0xc0405624
	IOCTL_BLKSNAP_SNAPSHOT_WATCH 0x40105625
	IOCTL_BLKSNAP_SNAPSHOT_OWN 0x00005626
	IOCTL_BLKSNAP_SNAPSHOT_FREEZE 0x40185627
	END
}

ioctl_values()
{
	case $(uname -m) in
	x86_64 | aarch64 | riscv64 | s390x | loongarch64) ;;
	*) skip "ioctls are encoded differently on $(uname -m)" ;;
	esac
	diff <(values) <(ctl abi | grep -E '^(BLKFILTER|IOCTL)')
}

layouts()
{
	diff - <(ctl abi | grep -Ev '^(BLKFILTER|IOCTL)') <<-END
	BLKSNAP_FILTER_CBTINFO 0x00000000
	BLKSNAP_FILTER_CBTMAP 0x00000001
	BLKSNAP_FILTER_CBTDIRTY 0x00000002
	BLKSNAP_FILTER_SNAPSHOTADD 0x00000003
	BLKSNAP_FILTER_SNAPSHOTINFO 0x00000004
	BLKSNAP_FILTER_CBTTAKES 0x00000020
	BLKSNAP_FILTER_SELECT 0x00000021
	BLKSNAP_EVENT_CODE_CORRUPTED 0x00000000
	BLKSNAP_EVENT_CODE_NO_SPACE 0x00000001
	BLKSNAP_EVENT_CODE_LOW_SPACE 0x00000020
	struct blkfilter_attach 48
	blkfilter_attach.opt 32
	blkfilter_attach.optlen 40
	struct blkfilter_detach 32
	struct blkfilter_ctl 48
	blkfilter_ctl.cmd 32
	blkfilter_ctl.optlen 36
	blkfilter_ctl.opt 40
	struct blksnap_cbtinfo 40
	blksnap_cbtinfo.block_size 8
	blksnap_cbtinfo.block_count 12
	blksnap_cbtinfo.generation_id 16
	blksnap_cbtinfo.changes_number 32
	struct blksnap_cbtmap 16
	blksnap_cbtmap.length 4
	blksnap_cbtmap.buffer 8
	struct blksnap_cbttakes 40
	blksnap_cbttakes.size 4
	blksnap_cbttakes.takes 8
	blksnap_cbttakes.generation_id 16
	blksnap_cbttakes.flags 32
	struct blksnap_select 24
	blksnap_select.flags 16
	struct blksnap_sectors 16
	struct blksnap_cbtdirty 16
	blksnap_cbtdirty.dirty_sectors 8
	struct blksnap_snapshotadd 16
	struct blksnap_snapshotinfo 36
	blksnap_snapshotinfo.image 4
	struct blksnap_version 8
	struct blksnap_snapshot_create 32
	blksnap_snapshot_create.diff_storage_filename 8
	blksnap_snapshot_create.id 16
	struct blksnap_snapshot_collect 16
	blksnap_snapshot_collect.ids 8
	struct blksnap_snapshot_event 4096
	blksnap_snapshot_event.timeout_ms 16
	blksnap_snapshot_event.code 20
	blksnap_snapshot_event.time_label 24
	blksnap_snapshot_event.data 32
	struct blksnap_snapshot_create_empty 24
	blksnap_snapshot_create_empty.flags 16
	struct blksnap_storage_append 40
	blksnap_storage_append.ranges 16
	blksnap_storage_append.count 24
	blksnap_storage_append.fd 28
	blksnap_storage_append.flags 32
	struct blksnap_storage_limit 24
	blksnap_storage_limit.limit_sect 16
	struct blksnap_storage_low_space 24
	blksnap_storage_low_space.nr_sect 16
	struct blksnap_event_lost 32
	blksnap_event_lost.sector 8
	blksnap_event_lost.nr_sect 16
	blksnap_event_lost.err_code 24
	struct blksnap_event_slow_storage 16
	blksnap_event_slow_storage.held_ms 8
	blksnap_event_slow_storage.limit_ms 12
	struct blksnap_snapshot_freeze 24
	blksnap_snapshot_freeze.fd 16
	blksnap_snapshot_freeze.flags 20
	struct blksnap_storage_info 64
	blksnap_storage_info.total_nr_sect 16
	blksnap_storage_info.used_nr_sect 24
	blksnap_storage_info.low_space_nr_sect 32
	blksnap_storage_info.lost_nr_sect 40
	blksnap_storage_info.held_ms 48
	blksnap_storage_info.reserved 56
	END
}

version()
{
	ctl version | grep -Ex '3\.[0-9]+\.[0-9]+\.[0-9]+'
	equal "$(ctl version)" "$(ctl version)" "the version"
}

# A command is all of its number: with another size it is unknown.
unknown_commands()
{
	local dev

	null_blk 1; dev=$REPLY
	expect ENOTTY ctl raw /dev/blksnap-control 0x80045600 zero:4
	expect ENOTTY ctl raw /dev/blksnap-control 0x801056ff zero:16
	# The first of the numbers that are kept for extensions.
	expect ENOTTY ctl raw /dev/blksnap-control 0xc0185641 zero:24
	expect ENOTTY ctl raw /dev/blksnap-control 0x1234 null
	expect ENOTTY ctl raw "$dev" 0xc0101290 zero:16
	attach "$dev"
	for cmd in 5 31 34 255 0x80000000 0xffffffff; do
		expect ENOTTY ctl ctl "$dev" blksnap "$cmd" 0 null
	done
}

collect_none()
{
	equal 0 "$(ctl collect null)" "the number of snapshots"
	equal "" "$(ctl collect 4)" "the ids"
	equal "" "$(ctl collect 0)" "the ids"
}

collect()
{
	local ids=() i

	for i in 0 1 2; do
		new_storage
		create "$storage" 2048
		ids[i]=$snapshot
	done
	equal 3 "$(printf '%s\n' "${ids[@]}" | sort -u | wc -l)" "different ids"
	equal 3 "$(ctl collect null)" "the number"
	expect ENODATA ctl collect 2
	equal 3 "$(ctl collect 2 2>/dev/null || true)" "the number needed"
	for i in 3 4 100; do
		diff <(printf '%s\n' "${ids[@]}" | sort) <(ctl collect "$i" | sort)
	done
	ctl destroy "${ids[1]}"
	equal 2 "$(ctl collect null)" "the number"
	diff <(printf '%s\n' "${ids[0]}" "${ids[2]}" | sort) <(ctl collect | sort)
}

info_before_take()
{
	local dev

	null_blk 1; dev=$REPLY
	attach "$dev"
	new_storage
	create "$storage" 2048
	expect ESRCH ctl info "$dev"
	ctl add "$dev" "$snapshot"
	diff <(printf 'error 0\nimage \n') <(ctl info "$dev")
	ctl take "$snapshot"
	ctl info "$dev" | grep -x 'error 0'
	[ -b "$(image_of "$dev")" ]
	ctl destroy "$snapshot"
	expect ESRCH ctl info "$dev"
}

# The image looks like the device, and cannot be written to.
image()
{
	local dev image attribute block

	for block in 512 4096; do
		null_blk 16 blocksize="$block"; dev=$REPLY
		snapshot_of "$dev"
		image=$(image_of "$dev")
		equal "$(size_of "$dev")" "$(size_of "$image")" "the size"
		for attribute in logical_block_size physical_block_size; do
			equal "$(<"/sys/block/${dev#/dev/}/queue/$attribute")" \
			      "$(<"/sys/block/${image#/dev/}/queue/$attribute")" \
			      "$attribute"
		done
		equal 1 "$(blockdev --getro "$image")" "read-only"
		if dd if=/dev/zero of="$image" bs=4k count=1 oflag=direct 2>/dev/null; then
			wrong "the image could be written to"
		fi
		if blkdiscard -f "$image" 2>/dev/null; then
			wrong "the image could be discarded"
		fi
	done
}

# Reads that the image hands on have the memory of who reads it.
alignment()
{
	local key

	null_blk 16
	printf -v key %0128x 4711
	dm blksnap-aligned \
		"0 $((16 << 11)) crypt aes-xts-plain64 $key 0 $REPLY 0 1 sector_size:4096"
	equal 4095 "$(<"/sys/block/${REPLY#/dev/}/queue/dma_alignment")" "what dm-crypt wants"
	snapshot_of "$REPLY"
	REPLY=$(image_of "$REPLY")
	equal 4095 "$(<"/sys/block/${REPLY#/dev/}/queue/dma_alignment")" "what the image wants"
}

# A 32-bit program's struct blkfilter_attach is four bytes shorter.
compat()
{
	local dev attach=0xc02c128e name

	[ "$(uname -m)" = x86_64 ] || skip "not on $(uname -m)"
	(ctl -c version >/dev/null 2>&1) || skip "no 32-bit programs"
	null_blk 16; dev=$REPLY
	# "blksnap", 32 bytes; then u64 opt and u32 optlen.
	name=626c6b736e617000$(printf '0%.0s' {1..48})
	expect ENOTTY ctl raw "$dev" "$attach" "$name$(printf '0%.0s' {1..24})"
	ctl -c raw "$dev" "$attach" "$name$(printf '0%.0s' {1..24})"
	undo detach "$dev"
	expect EALREADY ctl attach "$dev"
	ctl detach "$dev"
	ctl -c attach "$dev"
	new_storage
	snapshot=$(ctl -c create "$storage" 2048)
	undo destroy "$snapshot"
	ctl -c add "$dev" "$snapshot"
	ctl -c take "$snapshot"
	equal "$snapshot" "$(ctl -c collect)" "the ids"
	diff <(ctl info "$dev") <(ctl -c info "$dev")
	diff <(ctl cbtinfo "$dev") <(ctl -c cbtinfo "$dev")
	ctl -c cbtdirty "$dev" 0:1
	equal 1 "$(ctl -c cbtmap "$dev" 0 1)" "the map"
	expect ENOENT ctl -c wait "$snapshot" 1
	ctl -c destroy "$snapshot"
	ctl -c detach "$dev"
}

run_cases \
	"values of the ioctls" ioctl_values \
	"layouts of the structs" layouts \
	"version" version \
	"unknown commands" unknown_commands \
	"no snapshot is collected" collect_none \
	"snapshots are collected, with too little, enough and more room" collect \
	"info before and after take" info_before_take \
	"the image has the device's size and block sizes and is read-only" image \
	"the image wants memory that is aligned as for the device" alignment \
	"32-bit programs" compat
