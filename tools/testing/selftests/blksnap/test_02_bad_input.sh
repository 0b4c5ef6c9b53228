#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Each wrong call gets its error and leaves nothing behind.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly NOBODY=01234567-89ab-cdef-0123-456789abcdef

not_a_block_device()
{
	expect ENOTTY ctl attach /dev/null
	expect ENOTTY ctl attach "$0"
	expect ENOTTY ctl detach /dev/null
	expect ENOTTY ctl cbtinfo "$0"
	expect ENOTTY ctl attach /dev/blksnap-control
}

names()
{
	local dev long

	null_blk 1; dev=$REPLY
	long=$(printf 'x%.0s' {1..32})
	expect ENOENT ctl attach "$dev" nosuchfilter
	expect ENOENT ctl attach "$dev" ""
	expect ENOENT ctl attach "$dev" "${long:1}"
	expect EINVAL ctl attach "$dev" "$long"
	expect EINVAL ctl detach "$dev" "$long"
	expect EINVAL ctl ctl "$dev" "$long" 0 40 zero:40
	expect ENOENT ctl detach "$dev"
	expect ENOENT ctl cbtinfo "$dev"
	attach "$dev"
	expect EALREADY ctl attach "$dev"
	expect ENOENT ctl attach "$dev" nosuchfilter
	expect ENOENT ctl detach "$dev" nosuchfilter
	expect ENOENT ctl ctl "$dev" nosuchfilter 0 40 zero:40
	ctl cbtinfo "$dev"
	ctl detach "$dev"
	expect ENOENT ctl detach "$dev"
}

lengths()
{
	local dev cmd size len

	null_blk 1; dev=$REPLY
	for len in 1 8 4096 0x7fffffff 0x80000000 0xffffffff; do
		expect EINVAL ctl attach "$dev" blksnap "$len" zero:8
		expect EINVAL ctl attach "$dev" blksnap "$len" bad
	done
	expect ENOENT ctl detach "$dev"
	attach "$dev"
	cmd=0
	for size in 40 16 16 16 36; do
		for len in 0 1 $((size - 1)) $((size + 1)) 4096 0x7fffffff \
				0x80000000 0xffffffff; do
			expect EINVAL ctl ctl "$dev" blksnap "$cmd" "$len" zero:"$size"
		done
		cmd=$((cmd + 1))
	done
}

# The structure and its elements may become longer, with zeroes in what is not known.
takes()
{
	local dev size

	null_blk 1; dev=$REPLY
	expect ENOENT ctl cbttakes "$dev"
	attach "$dev"
	equal 0 "$(ctl cbttakes "$dev" null | head -1)" "the number of takes"
	take "$dev"
	ctl destroy "$snapshot"
	take "$dev"
	equal 2 "$(ctl cbttakes "$dev" null | head -1)" "the number of takes"
	for size in 16 17 24 4096; do
		equal "$(ctl cbttakes "$dev")" "$(ctl cbttakes "$dev" 3 "$size")" \
			"the takes in elements of $size bytes"
	done
	for size in 0 1 15 4097 0x7fffffff 0xffffffff; do
		expect EINVAL ctl cbttakes "$dev" null "$size"
	done
	equal 2 "$(ctl cbttakes "$dev" 1 2>/dev/null | head -1)" "the number needed"
	expect ENODATA ctl cbttakes "$dev" 1
	expect ENODATA ctl cbttakes "$dev" 0
	expect EFAULT ctl cbttakes "$dev" bad
	for size in 0 1 16 39; do
		expect EINVAL ctl ctl "$dev" blksnap 32 "$size" zero:40
	done
	# 16 bytes an element, no room asked for
	ctl ctl "$dev" blksnap 32 40 "$(takes_of 00)"
	ctl ctl "$dev" blksnap 32 48 "$(takes_of 00)$(printf '%016x' 0)"
	expect EINVAL ctl ctl "$dev" blksnap 32 40 "$(takes_of 01)"
	expect E2BIG ctl ctl "$dev" blksnap 32 48 "$(takes_of 00)$(printf '%016x' 1)"
	expect E2BIG ctl ctl "$dev" blksnap 32 0xffffffff "$(takes_of 00)"
	expect EFAULT ctl ctl "$dev" blksnap 32 48 "$(takes_of 00)"
	expect EFAULT ctl ctl "$dev" blksnap 32 40 null
	expect EFAULT ctl ctl "$dev" blksnap 32 40 bad
}

# takes_of FLAGS: struct blksnap_cbttakes without an array, the first byte of its flags
takes_of()
{
	printf '%08x10000000%048x%s%014x' 0 0 "$1" 0
}

pointers()
{
	local dev cmd size request

	null_blk 1; dev=$REPLY
	new_storage
	for request in 0xc030128e 0xc020128f 0xc0301290; do
		expect EFAULT ctl raw "$dev" "$request" null
		expect EFAULT ctl raw "$dev" "$request" bad
		# All but the last byte can be read.
		expect EFAULT ctl raw "$dev" "$request" zero:$(((request >> 16 & 0xff) - 1))
	done
	attach "$dev"
	create "$storage" 2048
	cmd=0
	for size in 40 16 16 16; do
		expect EFAULT ctl ctl "$dev" blksnap "$cmd" "$size" null
		expect EFAULT ctl ctl "$dev" blksnap "$cmd" "$size" bad
		expect EFAULT ctl ctl "$dev" blksnap "$cmd" "$size" zero:$((size - 1))
		cmd=$((cmd + 1))
	done
	expect EFAULT ctl cbtmap "$dev" 0 1 bad
	expect EFAULT ctl cbtdirty "$dev" bad
	expect EFAULT ctl cbtdirty "$dev" bad 0xffffffff
	ctl cbtdirty "$dev"
	for request in 0x80085600 0xc0205601 0x40105602 0x40105603 0x80105604 \
			0x90005605; do
		expect EFAULT ctl raw /dev/blksnap-control "$request" null
		expect EFAULT ctl raw /dev/blksnap-control "$request" bad
	done
	expect EFAULT ctl create bad 2048
	expect EFAULT ctl collect bad
	expect EFAULT ctl -r collect
	expect EFAULT ctl -r version
	ctl add "$dev" "$snapshot"
	expect EFAULT ctl ctl "$dev" blksnap 4 36 bad
	expect EFAULT ctl ctl "$dev" blksnap 4 36 zero:35
	equal "$snapshot" "$(ctl collect)" "the snapshots"
}

# An id that nobody gets is that of no snapshot.
create_unwritable()
{
	new_storage
	expect EFAULT ctl -r create "$storage" 2048
	equal "" "$(ctl collect)" "the snapshots"
	create "$storage" 2048
}

event_unwritable()
{
	new_storage
	create "$storage" 2048
	# It can be read up to where the kernel writes.
	expect ENOENT ctl -r wait "$snapshot" 10
}

# All calls there are, one a line, with right and with wrong arguments: who may not call
# does not learn which ones these are, nor whether there is a filter.
calls_of()
{
	local dev=$1 id=$2 cmd request

	cat <<-END
	attach $dev
	attach $dev nosuchfilter
	detach $dev
	detach $dev nosuchfilter
	cbtinfo $dev
	cbtmap $dev 0 1
	cbttakes $dev
	cbtdirty $dev 0:1
	add $dev $id
	info $dev
	version
	create $scratch/log 2048
	create $scratch 2048
	take $id
	take $NOBODY
	collect
	collect null
	wait $id 1
	wait $NOBODY 1
	destroy $id
	destroy $NOBODY
	END
	for cmd in 0 1 2 3 4 5 32 33 0xffffffff; do
		echo "ctl $dev blksnap $cmd 0 null"
		echo "ctl $dev nosuchfilter $cmd 16 zero:16"
	done
	for request in 0xc030128e 0xc020128f 0xc0301290; do
		echo "raw $dev $request bad"
	done
	for request in 0x80085600 0xc0205601 0x40105602 0x40105603 0x80105604 \
			0x90005605; do
		echo "raw /dev/blksnap-control $request bad"
	done
	if [ "$(uname -m)" = x86_64 ] && (ctl -c version >/dev/null 2>&1); then
		echo "-c raw $dev 0xc02c128e zero:44"
		echo "-c raw $dev 0xc0301290 zero:48"
		echo "-c raw /dev/blksnap-control 0x800c5604 zero:12"
		echo "-c version"
	fi
}

unprivileged()
{
	local dev how call

	null_blk 1; dev=$REPLY
	snapshot_of "$dev"
	calls_of "$dev" "$snapshot" >"$scratch/calls"
	for how in -u -U; do
		if [ "$how" = -U ] && ! unshare -Ur true 2>/dev/null; then
			echo "no user namespaces"
			continue
		fi
		while read -r -a call; do
			expect EPERM ctl "$how" "${call[@]}"
		done <"$scratch/calls"
	done
	equal "600 0 0" "$(stat -c '%a %u %g' /dev/blksnap-control)" \
		"mode and owner of the control device"
	equal "$snapshot" "$(ctl collect)" "the snapshots"
	equal 0 "$(ctl cbtmap "$dev" 0 1)" "the change map"
}

unknown_ids()
{
	local dev id

	null_blk 1; dev=$REPLY
	attach "$dev"
	new_storage
	create "$storage" 2048
	ctl destroy "$snapshot"
	for id in $NOBODY 00000000000000000000000000000000 "$snapshot"; do
		expect ESRCH ctl take "$id"
		expect ESRCH ctl add "$dev" "$id"
		expect ESRCH ctl wait "$id" 1
		expect ENODEV ctl destroy "$id"
	done
	expect ESRCH ctl info "$dev"
}

order()
{
	local dev other first

	null_blk 1; dev=$REPLY
	null_blk 1; other=$REPLY
	attach "$dev"
	attach "$other"
	new_storage
	create "$storage" 2048
	first=$snapshot
	expect ENODATA ctl take "$first"
	ctl add "$dev" "$first"
	expect EALREADY ctl add "$dev" "$first"
	new_storage
	create "$storage" 2048
	expect EBUSY ctl add "$dev" "$snapshot"
	expect ENODATA ctl take "$snapshot"
	expect EBUSY ctl detach "$dev"
	ctl take "$first"
	expect EALREADY ctl take "$first"
	expect EBUSY ctl add "$other" "$first"
	expect EALREADY ctl add "$dev" "$first"
	expect EBUSY ctl add "$dev" "$snapshot"
	expect EBUSY ctl detach "$dev"
	expect EALREADY ctl attach "$dev"
	ctl destroy "$first"
	# What was refused has left nothing.
	ctl add "$dev" "$snapshot"
	ctl add "$other" "$snapshot"
	ctl take "$snapshot"
	ctl destroy "$snapshot"
	ctl detach "$dev"
	ctl detach "$other"
}

zoned()
{
	null_blk 64 zoned=1 zone_size=4
	expect EOPNOTSUPP ctl attach "$REPLY"
	expect ENOENT ctl detach "$REPLY"
}

# Larger than a page
large_blocks()
{
	local dev

	truncate -s 16M "$scratch/backing"
	undo rm -f "$scratch/backing"
	loop_on "$scratch/backing"; dev=$REPLY
	losetup --sector-size 16384 "$dev" || skip "no blocks that are larger than a page"
	[ "$(blockdev --getss "$dev")" -gt "$(getconf PAGESIZE)" ] || skip "pages are large, too"
	attach "$dev"
	create "$scratch" "$ROOM"
	expect EOPNOTSUPP ctl add "$dev" "$snapshot"
	expect EOPNOTSUPP ctl append "$snapshot" "$dev"
	ctl destroy "$snapshot"
	expect EOPNOTSUPP ctl create "$dev" "$ROOM"
}

limits()
{
	new_storage
	expect EINVAL ctl create "$storage" 0
	expect EINVAL ctl create "$scratch" 0
	expect EINVAL ctl create "$storage" 0xffffffffffffffff
	expect EINVAL ctl create "$storage" 0x80000000000000
}

paths()
{
	local long

	new_storage
	expect ENOENT ctl create "$scratch/no/such/file" 2048
	expect ENOENT ctl create "" 2048
	expect ENOTDIR ctl create "$storage/file" 2048
	long=$(printf 'x%.0s' {1..300})
	expect ENAMETOOLONG ctl create "$scratch/$long" 2048
	long=$(printf '/%.0s' {1..4100})
	expect ENAMETOOLONG ctl create "$long" 2048
	expect EINVAL ctl create /dev/null 2048
	mkfifo "$scratch/fifo"
	undo rm "$scratch/fifo"
	expect EINVAL timeout 5 blksnap_ctl create "$scratch/fifo" 2048
	ln -s loop "$scratch/loop"
	undo rm "$scratch/loop"
	expect ELOOP ctl create "$scratch/loop" 2048
}

storage_in_use()
{
	local dev where

	new_storage
	exec 8>>"$storage"
	expect ETXTBSY ctl create "$storage" 2048
	exec 8>&-
	create "$storage" 2048
	expect ETXTBSY ctl create "$storage" 2048
	cp "$(command -v sleep)" "$scratch/program"
	undo rm -f "$scratch/program"
	background "$scratch/program" 1000
	eventually expect_running
	expect ETXTBSY ctl create "$scratch/program" 2048

	null_blk 16; dev=$REPLY
	make_fs ext4 "$dev"
	mounted "$dev"; where=$REPLY
	expect EBUSY ctl create "$dev" 0
	umount "$where"
	create "$dev" 0
	expect EBUSY ctl create "$dev" 0
	# It was opened exclusively, so it cannot be mounted.
	if mount "$dev" "$where" 2>/dev/null; then
		wrong "a storage could be mounted"
	fi
}

expect_running()
{
	[ "$(readlink "/proc/$!/exe")" = "$scratch/program" ]
}

# refused_storage STORAGE SECTORS DEV...: it is on each of the devices.
refused_storage()
{
	local storage=$1 sectors=$2 dev

	shift 2
	create "$storage" "$sectors"
	for dev; do
		expect EDEADLK ctl add "$dev" "$snapshot"
	done
	ctl destroy "$snapshot"
}

storage_on_origin()
{
	local disk one two where

	partitioned 64; disk=$REPLY one=${REPLY}p1 two=${REPLY}p2
	attach "$disk"
	attach "$one"
	attach "$two"
	# A file, an unnamed file.
	make_fs ext4 "$one"
	mounted "$one"; where=$REPLY
	: >"$where/storage"
	refused_storage "$where/storage" 2048 "$one" "$disk"
	refused_storage "$where" 2048 "$one" "$disk"
	# On the other partition it may be.
	create "$where/storage" 2048
	ctl add "$two" "$snapshot"
	ctl destroy "$snapshot"
	umount "$where"
	# The device, its partition, and the disk of it.
	refused_storage "$disk" 0 "$disk" "$one" "$two"
	refused_storage "$one" 0 "$disk" "$one"
	create "$one" 0
	ctl add "$two" "$snapshot"
	ctl take "$snapshot"
}

# The device as a loop device, a file on it as one, and a file on that
storage_by_loop()
{
	local dev where loop

	partitioned 64; dev=$REPLY
	attach "$dev"
	attach "${dev}p1"
	attach "${dev}p2"
	loop_on "$dev"
	refused_storage "$REPLY" 0 "$dev" "${dev}p1" "${dev}p2"
	make_fs ext4 "${dev}p1"
	mounted "${dev}p1"; where=$REPLY
	truncate -s 8M "$where/file"
	loop_on "$where/file"; loop=$REPLY
	refused_storage "$loop" 0 "$dev" "${dev}p1"
	create "$loop" 0
	ctl add "${dev}p2" "$snapshot"
	ctl destroy "$snapshot"
	# A file on that
	make_fs ext4 "$loop"
	mounted "$loop"
	refused_storage "$REPLY" 2048 "$dev" "${dev}p1"
}

# A device that is refused keeps what it has.
storage_keeps_content()
{
	local dev

	null_blk 16; dev=$REPLY
	filled "$dev" 16 "$scratch/old"
	attach "$dev"
	dm_linear blksnap-above "$dev" 0 32768
	refused_storage "$REPLY" 0 "$dev"
	dmsetup remove --noudevsync blksnap-above
	same "$dev" "$scratch/old"
}

# What a storage may not use of a device is not written.
storage_beside_origin()
{
	local dev

	null_blk 16; dev=$REPLY
	filled "$dev" 16 "$scratch/old"
	attach "$dev"
	null_blk 16
	dm blksnap-beside "0 2048 linear $REPLY 0
		2048 32768 linear $dev 0"
	refused_storage "$REPLY" 0 "$dev"
	create "$REPLY" 2048
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	put direct 0 65536 "$dev"
	same "$(image_of "$dev")" "$scratch/old"
}

# What is written to try a storage out may end much later.
storage_given_up()
{
	local one two

	null_blk 16; one=$REPLY
	null_blk 16; two=$REPLY
	filled "$one" 16 "$scratch/old"
	attach "$one"
	attach "$two"
	null_blk 16
	dm_linear blksnap-stuck "$REPLY" 0 32768
	create "$REPLY" 0
	ctl add "$one" "$snapshot"
	dmsetup suspend --noudevsync blksnap-stuck
	undo dmsetup resume --noudevsync blksnap-stuck
	background blksnap_ctl add "$two" "$snapshot"
	sleep 0.5
	kill "$!"
	wait "$!" 2>/dev/null || true
	expect EBUSY ctl add "$two" "$snapshot"
	expect EBUSY ctl take "$snapshot"
	dmsetup resume --noudevsync blksnap-stuck
	eventually blksnap_ctl add "$two" "$snapshot" >/dev/null 2>&1
	ctl take "$snapshot"
	put direct 0 $((4 << 20)) "$one"
	same "$(image_of "$one")" "$scratch/old"
}

storage_by_dm()
{
	local dev dm

	partitioned 64; dev=$REPLY
	attach "$dev"
	attach "${dev}p1"
	attach "${dev}p2"
	dm_linear blksnap-above "${dev}p1" 0 32768; dm=$REPLY
	refused_storage "$dm" 0 "$dev" "${dev}p1"
	create "$dm" 0
	ctl add "${dev}p2" "$snapshot"
	ctl destroy "$snapshot"
	# It is its own device, too, and has what is above it.
	loop_on "$dm"
	attach "$dm"
	refused_storage "$REPLY" 0 "$dm" "$dev" "${dev}p1"
}

storage_by_md()
{
	local one two

	null_blk 32; one=$REPLY
	null_blk 32; two=$REPLY
	md_array raid1 "$one" "$two"
	attach "$one"
	attach "$two"
	refused_storage "$REPLY" 0 "$one" "$two"
}

# Writes to the first come to the second, to the third, and would come back.
storage_in_a_circle()
{
	local one two three snapshot_of_one snapshot_of_two

	null_blk 16; one=$REPLY
	null_blk 16; two=$REPLY
	null_blk 16; three=$REPLY
	attach "$one"
	attach "$two"
	attach "$three"
	filled "$one" 16 "$scratch/one"
	filled "$two" 16 "$scratch/two"
	create "$two" 0; snapshot_of_one=$snapshot
	ctl add "$one" "$snapshot"
	create "$three" 0; snapshot_of_two=$snapshot
	ctl add "$two" "$snapshot"
	create "$one" 0
	expect EDEADLK ctl add "$three" "$snapshot"
	ctl destroy "$snapshot"
	# So far it is in order.
	ctl take "$snapshot_of_two"
	ctl take "$snapshot_of_one"
	put direct $((1 << 20)) $((4 << 20)) "$one"
	same "$(image_of "$one")" "$scratch/one"
	same "$(image_of "$two")" "$scratch/two"
	ctl destroy "$snapshot_of_two"
	create "$one" 0
	ctl add "$three" "$snapshot"
	same "$(image_of "$one")" "$scratch/one"
}

map_range()
{
	local dev count sectors

	null_blk 4; dev=$REPLY
	attach "$dev"
	count=$(ctl cbtinfo "$dev" | sed -n 's/^block_count //p')
	sectors=$(($(size_of "$dev") / 512))
	equal "$count" "$(ctl cbtmap "$dev" 0 "$count" | wc -l)" "bytes of the map"
	equal 1 "$(ctl cbtmap "$dev" $((count - 1)) 1 | wc -l)" "bytes of the map"
	expect ENODATA ctl cbtmap "$dev" "$count" 1
	expect ENODATA ctl cbtmap "$dev" 0 $((count + 1))
	expect ENODATA ctl cbtmap "$dev" $((count - 1)) 2
	expect ENODATA ctl cbtmap "$dev" 1 0xffffffff
	expect ENODATA ctl cbtmap "$dev" 0xffffffff 1
	expect ENODATA ctl cbtmap "$dev" 0xffffffff 0xffffffff
	expect ERANGE ctl cbtdirty "$dev" "$sectors:1"
	expect ERANGE ctl cbtdirty "$dev" "0:$((sectors + 1))"
	expect ERANGE ctl cbtdirty "$dev" 0xffffffffffffffff:2
	expect ERANGE ctl cbtdirty "$dev" 2:0xffffffffffffffff
	ctl cbtdirty "$dev" "0:$sectors"
}

# What was refused above holds nothing.
nothing_left()
{
	equal "" "$(ctl collect)" "the snapshots"
	is_module || skip "the driver is built in"
	rmmod blksnap
	load
}

run_cases \
	"not a block device" not_a_block_device \
	"names of filters" names \
	"lengths of arguments" lengths \
	"ids of the snapshots in the change map" takes \
	"pointers" pointers \
	"create that cannot return the id" create_unwritable \
	"event that cannot be returned" event_unwritable \
	"callers without privilege" unprivileged \
	"unknown snapshots" unknown_ids \
	"calls in the wrong order" order \
	"zoned device" zoned \
	"devices with large blocks" large_blocks \
	"limits of the storage" limits \
	"paths of the storage" paths \
	"storage that is in use" storage_in_use \
	"storage on a device of the snapshot" storage_on_origin \
	"storage on a loop device on a device of the snapshot" storage_by_loop \
	"storage that is refused keeps its content" storage_keeps_content \
	"storage beside a device of the snapshot" storage_beside_origin \
	"storage that is given up while it is tried out" storage_given_up \
	"storage on a dm device on a device of the snapshot" storage_by_dm \
	"storage on an md device on a device of the snapshot" storage_by_md \
	"storages in a circle" storage_in_a_circle \
	"ranges of the change map" map_range \
	"nothing is left" nothing_left
