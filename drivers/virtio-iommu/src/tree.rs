//! A sorted map of disjoint intervals: a B-tree in which every allocation may fail.
//!
//! A node is a list that is allocated once, for [`WIDTH`] items. Intervals are found by their last address: the first
//! one that ends at or after an address is the only one that can contain it, or overlap what begins there. A branch
//! knows for each child the last address below it.
//!
//! Nodes that are full are split on the way down, so that an insertion that runs out of memory has changed nothing but
//! the shape. Removal allocates nothing; neighbours that together fill half a node are joined, so that memory follows
//! what is mapped.

use crate::intervals::{InsertError, Interval};
use alloc::vec::Vec;
use core::ops::ControlFlow;
use portcullis_hal::{Iova, IovaRange, OutOfMemory, list};

/// The most items of a node.
const WIDTH: usize = 32;

#[derive(Debug)]
enum Node {
    Leaf(Vec<Interval>),
    /// All at the same depth, none empty.
    Branch(Vec<Child>),
}

#[derive(Debug)]
struct Child {
    /// The last address of the last interval below.
    last: Iova,
    node: Node,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Node,
    len: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self { root: Node::EMPTY, len: 0 }
    }
}

impl Tree {
    /// How many intervals there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first interval that ends at or after `iova`.
    pub(crate) fn at_or_after(&self, iova: Iova) -> Option<&Interval> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(list) => return list.get(item_for(list, iova)),
                Node::Branch(children) => node = &children.get(child_for(children, iova))?.node,
            }
        }
    }

    /// Adds an interval.
    pub(crate) fn insert(&mut self, interval: &Interval) -> Result<(), InsertError> {
        if self.root.is_full() {
            let mut children = node_list()?;
            let last = self.root.last().unwrap_or(interval.range.last());
            let root = core::mem::replace(&mut self.root, Node::EMPTY);
            // There is room: the list is new.
            let _ = list::push_reserved(&mut children, Child { last, node: root });
            self.root = Node::Branch(children);
        }
        self.root.insert(interval)?;
        self.len += 1;
        Ok(())
    }

    /// Removes the intervals that lie in `range` as a whole.
    pub(crate) fn remove(&mut self, range: &IovaRange) {
        self.len = self.len.saturating_sub(self.root.remove(range));
        while let Node::Branch(children) = &mut self.root
            && children.len() <= 1
        {
            self.root = children.pop().map_or(Node::EMPTY, |child| child.node);
        }
    }

    /// Shows the intervals that touch `range`, in order, until `visitor` breaks off.
    pub(crate) fn visit(&self, range: &IovaRange, visitor: &mut impl FnMut(&Interval) -> ControlFlow<()>) {
        // Why it ended makes no difference.
        let _ = self.root.visit(range, visitor);
    }
}

impl Node {
    const EMPTY: Self = Self::Leaf(Vec::new());

    fn len(&self) -> usize {
        match self {
            Self::Leaf(list) => list.len(),
            Self::Branch(children) => children.len(),
        }
    }

    fn is_full(&self) -> bool {
        self.len() >= WIDTH
    }

    fn last(&self) -> Option<Iova> {
        match self {
            Self::Leaf(list) => list.last().map(|item| item.range.last()),
            Self::Branch(children) => children.last().map(|child| child.last),
        }
    }

    /// How many intervals lie below.
    fn count(&self) -> usize {
        match self {
            Self::Leaf(list) => list.len(),
            Self::Branch(children) => children.iter().map(|child| child.node.count()).sum(),
        }
    }

    /// Adds an interval below a node that is not full.
    fn insert(&mut self, interval: &Interval) -> Result<(), InsertError> {
        let start = interval.range.start();
        match self {
            Self::Leaf(list) => {
                let index = item_for(list, start);
                if let Some(next) = list.get(index)
                    && next.range.overlaps(&interval.range)
                {
                    return Err(InsertError::Overlap(next.range.start().max(start)));
                }
                if list.capacity() == 0 {
                    *list = node_list()?;
                }
                list::insert_reserved(list, index, *interval).map_err(|_| InsertError::OutOfMemory)
            }
            Self::Branch(children) => {
                // What lies behind everything goes to the last child.
                let mut index = child_for(children, start).min(children.len().saturating_sub(1));
                if let Some(child) = children.get_mut(index)
                    && child.node.is_full()
                {
                    let right = child.split(start)?;
                    let beyond = child.last < start;
                    // There is room: this node is not full.
                    let _ = list::insert_reserved(children, index + 1, right);
                    index += usize::from(beyond);
                }
                let child = children.get_mut(index).ok_or(InsertError::OutOfMemory)?;
                child.node.insert(interval)?;
                child.last = child.last.max(interval.range.last());
                Ok(())
            }
        }
    }

    /// Removes the intervals that lie in `range` as a whole, and returns how many these were.
    fn remove(&mut self, range: &IovaRange) -> usize {
        match self {
            Self::Leaf(list) => {
                let from = list.partition_point(|item| item.range.start() < range.start());
                let to = list.partition_point(|item| item.range.last() <= range.last());
                close_gap(list, from, to.saturating_sub(from))
            }
            Self::Branch(children) => {
                let from = child_for(children, range.start());
                let to = child_for(children, range.last());
                let (mut removed, mut emptied) = (0, false);
                let touched = children.iter_mut().enumerate().skip(from).take(to.saturating_sub(from) + 1);
                for (index, child) in touched {
                    removed += if index > from && index < to {
                        let all = child.node.count();
                        child.node = Self::EMPTY;
                        all
                    } else {
                        child.node.remove(range)
                    };
                    match child.node.last() {
                        Some(last) => child.last = last,
                        None => emptied = true,
                    }
                }
                if emptied {
                    children.retain(|child| child.node.len() > 0);
                }
                join(children, from);
                join(children, from.saturating_sub(1));
                removed
            }
        }
    }

    fn visit(
        &self,
        range: &IovaRange,
        visitor: &mut impl FnMut(&Interval) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self {
            Self::Leaf(list) => {
                let from = item_for(list, range.start());
                for item in list.iter().skip(from) {
                    if item.range.start() > range.last() {
                        return ControlFlow::Break(());
                    }
                    visitor(item)?;
                }
            }
            Self::Branch(children) => {
                for child in children.iter().skip(child_for(children, range.start())) {
                    child.node.visit(range, visitor)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes over what its right neighbour has, for which there is room.
    fn absorb(&mut self, right: Self) {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(right)) => append(left, right),
            (Self::Branch(left), Self::Branch(right)) => append(left, right),
            // Neighbours are of the same kind.
            _ => {}
        }
    }
}

impl Child {
    /// Cuts a full node in two, before something that begins at `start` is added, and returns the right one. What is
    /// filled in ascending order stays full.
    fn split(&mut self, start: Iova) -> Result<Self, OutOfMemory> {
        let at = if start > self.last { WIDTH - 1 } else { WIDTH / 2 };
        let node = match &mut self.node {
            Node::Leaf(list) => Node::Leaf(tail(list, at)?),
            Node::Branch(children) => Node::Branch(tail(children, at)?),
        };
        let right = Self { last: self.last, node };
        self.last = self.node.last().unwrap_or(self.last);
        Ok(right)
    }
}

/// The first child with something at or after `iova`; the number of children if there is none.
fn child_for(children: &[Child], iova: Iova) -> usize {
    first_not_before(children, iova, |child| child.last)
}

/// The first interval that ends at or after `iova`; the number of intervals if there is none.
fn item_for(list: &[Interval], iova: Iova) -> usize {
    first_not_before(list, iova, |item| item.range.last())
}

/// The first item whose last address is not before `iova`; the number of items if there is none, which is looked at
/// first, since much is mapped in ascending order.
fn first_not_before<T>(items: &[T], iova: Iova, last: impl Fn(&T) -> Iova) -> usize {
    match items.last() {
        Some(item) if last(item) >= iova => items.partition_point(|item| last(item) < iova),
        _ => items.len(),
    }
}

/// Joins a child with the next one if both together fill half a node.
fn join(children: &mut Vec<Child>, index: usize) {
    let len = |index: usize| children.get(index).map(|child| child.node.len());
    let together = len(index).zip(len(index + 1)).map(|(left, right)| left + right);
    if together.is_some_and(|together| together <= WIDTH / 2)
        && let Some(right) = list::remove(children, index + 1)
        && let Some(left) = children.get_mut(index)
    {
        left.last = right.last;
        left.node.absorb(right.node);
    }
}

fn node_list<T>() -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(WIDTH).map_err(|_| OutOfMemory)?;
    Ok(list)
}

/// Moves the items from `at` on to a list of their own.
fn tail<T>(list: &mut Vec<T>, at: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut tail = node_list()?;
    while list.len() > at
        && let Some(item) = list.pop()
    {
        // There is room: a node has no more.
        let _ = list::push_reserved(&mut tail, item);
    }
    tail.reverse();
    Ok(tail)
}

fn append<T>(left: &mut Vec<T>, right: Vec<T>) {
    for item in right {
        // There is room: both together fill half a node.
        let _ = list::push_reserved(left, item);
    }
}

/// Removes `count` items from `from` on, or as many as there are.
fn close_gap<T: Copy>(list: &mut Vec<T>, from: usize, count: usize) -> usize {
    let count = count.min(list.len().saturating_sub(from));
    let left = list.len() - count;
    for at in from..left {
        if let Some(&item) = list.get(at + count)
            && let Some(place) = list.get_mut(at)
        {
            *place = item;
        }
    }
    list.truncate(left);
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::Random;
    use portcullis_hal::{Attributes, PhysAddr};
    use std::collections::BTreeMap;

    const PAGE: u64 = 0x1000;

    fn range(start: u64, len: u64) -> IovaRange {
        IovaRange::new(Iova::new(start * PAGE), len * PAGE).unwrap()
    }

    fn interval(start: u64, len: u64) -> Interval {
        Interval { range: range(start, len), phys: PhysAddr::new(start), attributes: Attributes::READ }
    }

    /// Checks the shape of a node and returns its depth and how many intervals and nodes it has.
    fn check(node: &Node, is_root: bool) -> (usize, usize, usize) {
        assert!(node.len() <= WIDTH && (is_root || node.len() > 0));
        match node {
            Node::Leaf(list) => {
                assert!(list.windows(2).all(|pair| pair[0].range.last() < pair[1].range.start()));
                (0, list.len(), 1)
            }
            Node::Branch(children) => {
                assert!(children.len() > usize::from(is_root));
                let below: Vec<_> = children.iter().map(|child| check(&child.node, false)).collect();
                assert!(below.iter().all(|(depth, ..)| *depth == below[0].0), "leaves at one depth");
                for child in children {
                    assert_eq!(child.node.last(), Some(child.last), "the last address is exact");
                }
                let sum = |of: fn(&(usize, usize, usize)) -> usize| below.iter().map(of).sum::<usize>();
                (below[0].0 + 1, sum(|node| node.1), sum(|node| node.2) + 1)
            }
        }
    }

    fn everything() -> IovaRange {
        IovaRange::from_bounds(Iova::new(0), Iova::new(u64::MAX)).unwrap()
    }

    fn contents(tree: &Tree) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        tree.visit(&everything(), &mut |item| {
            all.push((item.range.start().get() / PAGE, item.range.len() / PAGE));
            ControlFlow::Continue(())
        });
        all
    }

    #[test]
    fn any_order_of_insertions_and_removals_leaves_what_a_plain_map_has() {
        let rounds = if cfg!(miri) { 600 } else { 30_000 };
        for (seed, space) in [(1, 600), (2, 9_000), (3, 200_000)] {
            let (mut tree, mut map, mut dice) = (Tree::default(), BTreeMap::new(), Random::new(seed));
            for round in 0..rounds {
                let (start, len) = (dice.below(space), 1 + dice.below(4));
                // It grows and shrinks by turns.
                if dice.below(8) < if round / 8_000 % 2 == 0 { 6 } else { 3 } {
                    let below = map.range(..start + len).next_back();
                    let hit = below.is_some_and(|(at, size)| start < at + size);
                    assert_eq!(tree.insert(&interval(start, len)).is_err(), hit);
                    if !hit {
                        map.insert(start, len);
                    }
                } else {
                    let len = if dice.below(100) == 0 { space / 3 } else { 1 + dice.below(40) };
                    tree.remove(&range(start, len));
                    let whole = |item: (&u64, &u64)| item.0 + item.1 <= start + len;
                    let gone: Vec<u64> = map
                        .range(start..start + len)
                        .filter(|item| whole(*item))
                        .map(|(&at, _)| at)
                        .collect();
                    for at in gone {
                        map.remove(&at);
                    }
                }
                let probe = dice.below(space);
                // None is longer than four pages.
                let near = map.range(probe.saturating_sub(4)..);
                let expected = near.filter(|(at, len)| *at + *len > probe).map(|(&at, _)| at).next();
                let found = tree.at_or_after(Iova::new(probe * PAGE));
                assert_eq!(found.map(|item| item.range.start().get() / PAGE), expected);
                assert_eq!(tree.len(), map.len());
                if round % 997 == 0 {
                    assert_eq!(check(&tree.root, true).1, map.len());
                    let plain: Vec<_> = map.iter().map(|(&at, &len)| (at, len)).collect();
                    assert_eq!(contents(&tree), plain);
                }
            }
            tree.remove(&everything());
            assert_eq!((tree.len(), check(&tree.root, true)), (0, (0, 0, 1)));
        }
    }

    #[test]
    fn ascending_insertions_fill_the_nodes_and_the_depth_is_logarithmic() {
        let count = if cfg!(miri) { 2_000 } else { 100_000 };
        let mut tree = Tree::default();
        for page in 0..count {
            tree.insert(&interval(page, 1)).unwrap();
        }
        let (depth, items, nodes) = check(&tree.root, true);
        assert_eq!(items as u64, count);
        assert!(depth <= 3, "{depth}");
        assert!(nodes * (WIDTH - 2) <= items + items / 8, "{nodes} nodes for {items} intervals");
    }

    #[test]
    fn what_stays_after_many_removals_takes_few_nodes() {
        let mut tree = Tree::default();
        for page in 0..4_000 {
            tree.insert(&interval(page, 1)).unwrap();
        }
        // One in ten stays.
        for page in (0..4_000).filter(|page| page % 10 != 0) {
            tree.remove(&range(page, 1));
        }
        let (_, items, nodes) = check(&tree.root, true);
        assert_eq!(items, 400);
        assert!(nodes * WIDTH <= items * 6, "{nodes} nodes for {items} intervals");
    }

    #[test]
    fn a_removal_takes_whole_intervals_only() {
        let mut tree = Tree::default();
        for page in (0..300).step_by(3) {
            tree.insert(&interval(page, 2)).unwrap();
        }
        tree.remove(&range(4, 100));
        let left = contents(&tree);
        assert_eq!(left[..3], [(0, 2), (3, 2), (105, 2)]);
        assert_eq!(left.len(), 2 + 65);
    }
}
