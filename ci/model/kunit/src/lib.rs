// SPDX-License-Identifier: GPL-2.0-only

//! Attributes of the kernel's `macros` and `pin-init` crates that the driver uses, as far as code
//! on the host needs them.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Makes unit tests of a KUnit suite.
///
/// They are not for loom, whose atomics work only inside of `loom::model`. KUnit runs one test at a
/// time, and the driver's tests may share statics, so each takes a lock.
#[proc_macro_attribute]
pub fn kunit_tests(_name: TokenStream, module: TokenStream) -> TokenStream {
    let mut out: TokenStream = "#[cfg(all(test, not(loom)))]".parse().unwrap();
    out.extend(module.into_iter().map(|token| match token {
        TokenTree::Group(body) => with_stream(&body, one_at_a_time(body.stream())),
        other => other,
    }));
    out
}

fn one_at_a_time(module: TokenStream) -> TokenStream {
    let mut in_test = false;
    let each = module.into_iter().map(|token| match token {
        TokenTree::Group(group) if is_attribute(&group, "test") => {
            in_test = true;
            group.into()
        }
        TokenTree::Group(body) if in_test && body.delimiter() == Delimiter::Brace => {
            in_test = false;
            let mut locked: TokenStream = "let _one = ::kernel::one_test();".parse().unwrap();
            locked.extend(body.stream());
            with_stream(&body, locked)
        }
        other => other,
    });
    each.collect()
}

/// Returns a group like `group` with other tokens in it.
fn with_stream(group: &Group, stream: TokenStream) -> TokenTree {
    let mut new = Group::new(group.delimiter(), stream);
    new.set_span(group.span());
    new.into()
}

fn is_attribute(group: &Group, name: &str) -> bool {
    group.delimiter() == Delimiter::Bracket && group.stream().to_string() == name
}

/// Leaves an `impl` or trait as it is: nothing on the host asks which methods are defined.
#[proc_macro_attribute]
pub fn vtable(_: TokenStream, item: TokenStream) -> TokenStream {
    item
}

/// Removes `#[pin]` from fields, since nothing on the host is pinned.
#[proc_macro_attribute]
pub fn pin_data(_: TokenStream, item: TokenStream) -> TokenStream {
    without_pin(item)
}

fn without_pin(tokens: TokenStream) -> TokenStream {
    let mut out = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) if is_attribute(&group, "pin") => {
                // With the `#` ahead of it.
                out.pop();
            }
            TokenTree::Group(group) => {
                out.push(with_stream(&group, without_pin(group.stream())));
            }
            other => out.push(other),
        }
    }
    out.into_iter().collect()
}
