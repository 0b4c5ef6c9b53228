#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2154,SC2317,SC2329
#
# Random writes, discards, snapshots and what else happens to a device, against a model: no
# block that has changed is ever missing from the change map, and one that has not is never
# in it, but for the size of the blocks. blksnap_model.c says how that is known.
#
# Environment:
#   BLKSNAP_ROUNDS  how many rounds there are altogether (default: 500)
#   BLKSNAP_SEED    of the random numbers (default: random); a failure tells its seed

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly ROUNDS=${BLKSNAP_ROUNDS:-500} SEED=${BLKSNAP_SEED:-$SRANDOM}

# MiB of a device
readonly SIZE=2

# Each is tested on several devices, all at once: snapshots take time, but no work.
readonly KINDS=(disk partition resized stacked) DEVICES=4

# What blksnap_model is to be told of the new device
args=()

disk_with_partition()
{
	need sfdisk
	null_blk "$SIZE" discard=1
	# Not where a block begins, or ends
	echo 77,$((SIZE * 2048 - 200)) | sfdisk -qf "$REPLY"
	eventually test -b "${REPLY}p1"
	args=(-b "/sys/kernel/config/nullb/${REPLY#/dev/}/badblocks")
}

disk()
{
	disk_with_partition
	args+=(-o "${REPLY}p1" "$scratch" "$REPLY")
}

partition()
{
	disk_with_partition
	args+=(-o "$REPLY" "$scratch" "${REPLY}p1")
}

resized()
{
	local file

	loop "$SIZE"
	file=$(losetup -nO BACK-FILE "$REPLY")
	args=(-r "$file" "$scratch" "$REPLY")
}

stacked()
{
	null_blk "$SIZE" discard=1
	dm_linear "blksnap-model$next_number" "$REPLY" 9 $((SIZE * 2048 - 20))
	args=("$scratch" "$REPLY")
}

model()
{
	local rounds=$((ROUNDS / ${#KINDS[@]} / DEVICES + 1)) kind i

	for kind in "${KINDS[@]}"; do
		for ((i = 0; i < DEVICES; i++)); do
			"$kind"
			undo detach "${args[-1]}"
			# One of them is near the end of its numbers.
			start "$kind.$i" -s $((SEED + i)) -n "$rounds" \
				-a $((i ? 0 : 252)) "${args[@]}"
		done
	done
	wait_for_all succeeded
	[ "$failures" = 0 ] || return
	for kind in "${KINDS[@]}"; do
		result "$kind: seed $SEED, $(counts "$kind" | paste -sd , | sed 's/,/, /g')"
	done
}

started=()

# start NAME ARGUMENT...: what it prints goes to $scratch/model.NAME
start()
{
	local name=$1

	shift
	blksnap_model "$@" >"$scratch/model.$name" 2>&1 &
	undo destroy_all
	undo stop $!
	started+=("$! $name")
	echo "$*" >"$scratch/arguments.$name"
}

destroy_all()
{
	local id

	for id in $(ctl collect); do
		ctl destroy "$id"
	done
}

# wait_for_all FUNCTION: which gets the name and the status of each
wait_for_all()
{
	local run pid name status

	for run in "${started[@]}"; do
		read -r pid name <<<"$run"
		status=0
		wait "$pid" || status=$?
		"$1" "$name" "$status"
	done
}

succeeded()
{
	[ "$2" != 0 ] || return 0
	cat "$scratch/model.$1"
	wrong "status $2: blksnap_model $(<"$scratch/arguments.$1")"
}

# counts KIND: what was counted, by what it is
counts()
{
	awk '{ sum[$1] += $2; if (!known[$1]++) order[++n] = $1 }
		END { for (i = 1; i <= n; i++) print order[i], sum[order[i]] }' \
		"$scratch/model.$1".*
}

# bites CHECK ARGUMENT...: this check alone has to find what is wrong. "under" is the
# device below.
bites()
{
	local dev under name=$1.$next_number

	null_blk 1; under=$REPLY
	dm_linear "blksnap-$name" "$under" 0 2048; dev=$REPLY
	undo detach "$dev"
	start "$name" -s "$SEED" -n 1000 -k "${@/#under/$under}" "$scratch" "$dev"
}

found()
{
	[ "$2" = 1 ] && tail -n 1 "$scratch/model.$1" | grep -q ": ${1%.*}: " && return
	tail -n 20 "$scratch/model.$1"
	wrong "status $2: blksnap_model $(<"$scratch/arguments.$1")"
}

# What would be found if the driver did it
model_bites()
{
	# A block that is missing in the map, and one that is always there
	bites numbers -x lose
	bites images -x lose
	bites copies -x lose
	bites numbers -x add
	# An image with a byte that is wrong
	bites contents -x image
	# Numbers that begin anew, and the generation is the same
	bites numbers -x generation -a 250
	bites copies -x generation -a 250
	# Writes that the filter does not see
	bites numbers -o under
	bites images -o under
	bites copies -o under
	wait_for_all found
}

run_cases \
	"random operations, and what the map says of them" model \
	"the model finds what is wrong" model_bites
