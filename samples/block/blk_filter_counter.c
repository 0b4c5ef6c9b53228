// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sample block device filter: counts the writes to a block device. Where the
 * block layer or the device's driver splits a write, the filter sees the rest
 * a second time and counts it twice.
 *
 * User space attaches it to a device with BLKFILTER_ATTACH, by the name
 * "write_counter", and reads the counts with BLKFILTER_CTL. The program in
 * samples/rust/rust_block_filter.rs does that with another filter, which has
 * another name and four counts.
 */
#include <linux/atomic.h>
#include <linux/bio.h>
#include <linux/blk-filter.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

/* Command: copy the counts, two numbers of 64 bits, to the argument. */
#define WRITE_COUNTER_GET	0

struct write_counter {
	struct blk_filter filter;
	atomic64_t bios;
	atomic64_t sectors;
};

static struct write_counter *to_write_counter(struct blk_filter *filter)
{
	return container_of(filter, struct write_counter, filter);
}

static struct blk_filter *write_counter_attach(struct block_device *bdev,
					       void __user *opt, u32 optlen)
{
	struct write_counter *counter;

	if (optlen)
		return ERR_PTR(-EINVAL);
	counter = kzalloc_obj(*counter);
	if (!counter)
		return ERR_PTR(-ENOMEM);
	return &counter->filter;
}

static int write_counter_ctl(struct blk_filter *filter, unsigned int cmd,
			     void __user *opt, u32 optlen)
{
	struct write_counter *counter = to_write_counter(filter);
	u64 counts[2];

	if (cmd != WRITE_COUNTER_GET)
		return -ENOTTY;
	if (optlen != sizeof(counts))
		return -EINVAL;
	counts[0] = atomic64_read(&counter->bios);
	counts[1] = atomic64_read(&counter->sectors);
	return copy_to_user(opt, counts, sizeof(counts)) ? -EFAULT : 0;
}

static bool write_counter_submit_bio(struct blk_filter *filter,
				     struct bio *bio, sector_t sector,
				     sector_t nr_sectors, struct bio_list *own)
{
	struct write_counter *counter = to_write_counter(filter);

	if (op_is_write(bio_op(bio))) {
		atomic64_inc(&counter->bios);
		atomic64_add(nr_sectors, &counter->sectors);
	}
	return false;
}

static void write_counter_free(struct blk_filter *filter)
{
	kfree(to_write_counter(filter));
}

static const struct blk_filter_ops write_counter_ops = {
	.name		= "write_counter",
	.owner		= THIS_MODULE,
	.attach		= write_counter_attach,
	.ctl		= write_counter_ctl,
	.submit_bio	= write_counter_submit_bio,
	.free		= write_counter_free,
};

static int __init write_counter_init(void)
{
	return blk_filter_register(&write_counter_ops);
}

static void __exit write_counter_exit(void)
{
	blk_filter_unregister(&write_counter_ops);
}

module_init(write_counter_init);
module_exit(write_counter_exit);

MODULE_DESCRIPTION("Sample block device filter");
MODULE_LICENSE("GPL");
