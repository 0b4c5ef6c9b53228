// SPDX-License-Identifier: GPL-2.0

#include <linux/random.h>

#if !IS_ENABLED(CONFIG_VMGENID)
__rust_helper int
rust_helper_register_random_vmfork_notifier(struct notifier_block *nb)
{
	return register_random_vmfork_notifier(nb);
}

__rust_helper int
rust_helper_unregister_random_vmfork_notifier(struct notifier_block *nb)
{
	return unregister_random_vmfork_notifier(nb);
}
#endif
