// SPDX-License-Identifier: GPL-2.0-only
/* A filter that lets every bio pass: what the filter API itself costs. */
#include <linux/blk-filter.h>
#include <linux/module.h>
#include <linux/slab.h>

static struct blk_filter *pass_attach(struct block_device *bdev,
				      void __user *opt, u32 optlen)
{
	struct blk_filter *filter = kzalloc(sizeof(*filter), GFP_KERNEL);

	return filter ?: ERR_PTR(-ENOMEM);
}

static int pass_ctl(struct blk_filter *filter, unsigned int cmd,
		    void __user *opt, u32 optlen)
{
	return -ENOTTY;
}

static bool pass_submit_bio(struct blk_filter *filter, struct bio *bio,
			    sector_t sector, sector_t nr_sectors,
			    struct bio_list *own)
{
	return false;
}

static void pass_free(struct blk_filter *filter)
{
	kfree(filter);
}

static const struct blk_filter_ops pass_ops = {
	.name		= "pass",
	.owner		= THIS_MODULE,
	.attach		= pass_attach,
	.ctl		= pass_ctl,
	.submit_bio	= pass_submit_bio,
	.free		= pass_free,
};

static int __init pass_init(void)
{
	return blk_filter_register(&pass_ops);
}
module_init(pass_init);

static void __exit pass_exit(void)
{
	blk_filter_unregister(&pass_ops);
}
module_exit(pass_exit);

MODULE_DESCRIPTION("Block device filter that does nothing");
MODULE_LICENSE("GPL");
