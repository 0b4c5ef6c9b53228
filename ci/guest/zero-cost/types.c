// SPDX-License-Identifier: GPL-2.0-only
/* Never linked: its debug information has the sizes that pahole prints. */
#include <linux/blkdev.h>
#include <linux/blk-mq.h>
#include <linux/sched.h>

struct bio *bio_type;
struct request *request_type;
struct task_struct *task_struct_type;
struct block_device *block_device_type;
struct gendisk *gendisk_type;
struct request_queue *request_queue_type;
