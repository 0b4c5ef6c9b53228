/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Arguments of the form NAME=VALUE, separated by spaces
 */
#include <linux/kstrtox.h>
#include <linux/string.h>

/* Takes the next one off the text: 1, 0 at the end, -EINVAL if there is no value. */
static int next_word(char **text, char **name, char **value)
{
	do {
		*name = strsep(text, " \n");
		if (!*name)
			return 0;
	} while (!**name);
	*value = strchr(*name, '=');
	if (!*value)
		return -EINVAL;
	*(*value)++ = 0;
	return 1;
}

/* Sets the number whose name is at the same place in `names`. */
static int set_number(const char *name, const char *value, const char *const *names, size_t count, void *numbers)
{
	int at = match_string(names, count, name);

	return at < 0 ? at : kstrtou64(value, 0, (u64 *)numbers + at);
}
