// SPDX-License-Identifier: GPL-2.0-only

//! Red-black trees, over the standard library's map.

use crate::{
    alloc::{try_one, Flags},
    error::Result,
};
use core::{marker::PhantomData, ops::Bound};
use std::collections::{btree_map, BTreeMap};

/// A map with sorted keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RBTree<K, V>(BTreeMap<K, V>);

/// Memory for a node.
#[derive(Debug)]
pub struct RBTreeNodeReservation<K, V>(PhantomData<(K, V)>);

/// A node that is in no tree.
#[derive(Debug)]
pub struct RBTreeNode<K, V> {
    key: K,
    value: V,
}

impl<K, V> RBTreeNodeReservation<K, V> {
    /// Allocates the memory.
    pub fn new(_: Flags) -> Result<Self> {
        try_one()?;
        Ok(Self(PhantomData))
    }

    /// Makes a node.
    pub fn into_node(self, key: K, value: V) -> RBTreeNode<K, V> {
        RBTreeNode { key, value }
    }
}

impl<K, V> RBTreeNode<K, V> {
    /// Allocates a node.
    pub fn new(key: K, value: V, flags: Flags) -> Result<Self> {
        Ok(RBTreeNodeReservation::new(flags)?.into_node(key, value))
    }

    /// Drops what was in the node, and keeps its memory.
    pub fn into_reservation(self) -> RBTreeNodeReservation<K, V> {
        RBTreeNodeReservation(PhantomData)
    }

    /// Frees the node and returns what was in it.
    pub fn to_key_value(self) -> (K, V) {
        (self.key, self.value)
    }
}

impl<K, V> RBTree<K, V> {
    /// Returns an empty tree.
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Returns whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the nodes in order.
    pub fn iter(&self) -> btree_map::Iter<'_, K, V> {
        self.0.iter()
    }

    /// Returns the keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// Returns the values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }
}

impl<K, V> Default for RBTree<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone, V> RBTree<K, V> {
    /// Inserts a node, and returns the one with the same key that it replaces.
    pub fn insert(&mut self, node: RBTreeNode<K, V>) -> Option<RBTreeNode<K, V>> {
        let key = node.key.clone();
        let value = self.0.insert(node.key, node.value)?;
        Some(RBTreeNode { key, value })
    }

    /// Returns the value for a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    /// Returns the value for a key.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.0.get_mut(key)
    }

    /// Removes a node and returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key)
    }

    /// Removes a node and returns it.
    pub fn remove_node(&mut self, key: &K) -> Option<RBTreeNode<K, V>> {
        let (key, value) = self.0.remove_entry(key)?;
        Some(RBTreeNode { key, value })
    }

    /// Returns the place of a key.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        if self.0.contains_key(&key) {
            Entry::Occupied(OccupiedEntry { tree: self, key })
        } else {
            Entry::Vacant
        }
    }

    /// Returns a cursor at the first node.
    pub fn cursor_front(&self) -> Option<Cursor<'_, K, V>> {
        let key = self.0.keys().next()?.clone();
        Some(Cursor { tree: self, key })
    }

    /// Returns a cursor at the last node.
    pub fn cursor_back(&self) -> Option<Cursor<'_, K, V>> {
        let key = self.0.keys().next_back()?.clone();
        Some(Cursor { tree: self, key })
    }

    /// Returns a cursor at the first node.
    pub fn cursor_front_mut(&mut self) -> Option<CursorMut<'_, K, V>> {
        let key = self.0.keys().next()?.clone();
        Some(CursorMut { tree: self, key })
    }

    /// Returns a cursor at the last node.
    pub fn cursor_back_mut(&mut self) -> Option<CursorMut<'_, K, V>> {
        let key = self.0.keys().next_back()?.clone();
        Some(CursorMut { tree: self, key })
    }

    /// Returns a cursor at the first node whose key is not less than `key`.
    pub fn cursor_lower_bound(&self, key: &K) -> Option<Cursor<'_, K, V>> {
        let key = self.lower_bound(key)?;
        Some(Cursor { tree: self, key })
    }

    /// Returns a cursor at the first node whose key is not less than `key`.
    pub fn cursor_lower_bound_mut(&mut self, key: &K) -> Option<CursorMut<'_, K, V>> {
        let key = self.lower_bound(key)?;
        Some(CursorMut { tree: self, key })
    }

    fn lower_bound(&self, key: &K) -> Option<K> {
        Some(self.0.range(key..).next()?.0.clone())
    }

    fn before(&self, key: &K) -> Option<(&K, &V)> {
        self.0.range(..key).next_back()
    }

    fn after(&self, key: &K) -> Option<(&K, &V)> {
        let after = (Bound::Excluded(key), Bound::Unbounded);
        self.0.range(after).next()
    }
}

/// The place of a key.
pub enum Entry<'a, K, V> {
    /// There is no node with it.
    Vacant,
    /// There is one.
    Occupied(OccupiedEntry<'a, K, V>),
}

/// The place of a key with a node.
pub struct OccupiedEntry<'a, K, V> {
    tree: &'a mut RBTree<K, V>,
    key: K,
}

impl<K: Ord + Clone, V> OccupiedEntry<'_, K, V> {
    /// Returns the value.
    pub fn get_mut(&mut self) -> &mut V {
        let value = self.tree.0.get_mut(&self.key);
        value.expect("there is a node")
    }

    /// Removes the node and returns it.
    pub fn remove_node(self) -> RBTreeNode<K, V> {
        let node = self.tree.remove_node(&self.key);
        node.expect("there is a node")
    }
}

/// A place in a tree.
pub struct Cursor<'a, K, V> {
    tree: &'a RBTree<K, V>,
    key: K,
}

impl<'a, K: Ord + Clone, V> Cursor<'a, K, V> {
    /// Returns the node.
    pub fn current(&self) -> (&K, &V) {
        (&self.key, &self.tree.0[&self.key])
    }

    /// Returns the node before.
    pub fn peek_prev(&self) -> Option<(&K, &V)> {
        self.tree.before(&self.key)
    }

    /// Returns the node after.
    pub fn peek_next(&self) -> Option<(&K, &V)> {
        self.tree.after(&self.key)
    }

    /// Moves to the node before.
    pub fn move_prev(self) -> Option<Self> {
        let key = self.tree.before(&self.key)?.0.clone();
        Some(Self { key, ..self })
    }

    /// Moves to the node after.
    pub fn move_next(self) -> Option<Self> {
        let key = self.tree.after(&self.key)?.0.clone();
        Some(Self { key, ..self })
    }
}

/// A place in a tree that can be changed there.
pub struct CursorMut<'a, K, V> {
    tree: &'a mut RBTree<K, V>,
    key: K,
}

impl<'a, K: Ord + Clone, V> CursorMut<'a, K, V> {
    /// Returns the node.
    pub fn current(&self) -> (&K, &V) {
        (&self.key, &self.tree.0[&self.key])
    }

    /// Returns the node.
    pub fn current_mut(&mut self) -> (&K, &mut V) {
        let value = self.tree.0.get_mut(&self.key);
        (&self.key, value.expect("the cursor is at a node"))
    }

    /// Returns the node before.
    pub fn peek_prev(&self) -> Option<(&K, &V)> {
        self.tree.before(&self.key)
    }

    /// Returns the node after.
    pub fn peek_next(&self) -> Option<(&K, &V)> {
        self.tree.after(&self.key)
    }

    /// Returns the node before.
    pub fn peek_prev_mut(&mut self) -> Option<(&K, &mut V)> {
        self.tree.0.range_mut(..&self.key).next_back()
    }

    /// Returns the node after.
    pub fn peek_next_mut(&mut self) -> Option<(&K, &mut V)> {
        let after = (Bound::Excluded(&self.key), Bound::Unbounded);
        self.tree.0.range_mut(after).next()
    }

    /// Removes the node before and returns it.
    pub fn remove_prev(&mut self) -> Option<RBTreeNode<K, V>> {
        let key = self.peek_prev()?.0.clone();
        self.tree.remove_node(&key)
    }

    /// Removes the node after and returns it.
    pub fn remove_next(&mut self) -> Option<RBTreeNode<K, V>> {
        let key = self.peek_next()?.0.clone();
        self.tree.remove_node(&key)
    }

    /// Removes the node and returns it, with a cursor at the one after, or before if that was the
    /// last.
    pub fn remove_current(self) -> (Option<Self>, RBTreeNode<K, V>) {
        let Self { tree, key } = self;
        let neighbour = tree.after(&key).or(tree.before(&key));
        let neighbour = neighbour.map(|(key, _)| key.clone());
        let node = tree.remove_node(&key).expect("the cursor is at a node");
        (neighbour.map(|key| Self { tree, key }), node)
    }

    /// Moves to the node before.
    pub fn move_prev(self) -> Option<Self> {
        let key = self.peek_prev()?.0.clone();
        Some(Self { key, ..self })
    }

    /// Moves to the node after.
    pub fn move_next(self) -> Option<Self> {
        let key = self.peek_next()?.0.clone();
        Some(Self { key, ..self })
    }
}
