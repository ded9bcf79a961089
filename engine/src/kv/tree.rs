//! The prefix tree: which full blocks hold which tokens behind which tokens.
//!
//! A radix tree whose digits are blocks: a node is one block's tokens below the node of the tokens before them.
//! Nodes are found by comparing tokens, so nothing can collide; a leaf may be a block that is not full. Every
//! tenant has a root of its own, found by its salt under a hash whose key is drawn at random per process: what
//! one tenant asks is never found, nor timed, by another.
//!
//! A node has a block on the device, a copy in host memory, or both. Who holds a node holds all nodes above it, and
//! what lies above a block on the device is on the device: so what nobody holds can be emptied from the leaves up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::Part;
use crate::request::SeqId;

/// A node; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

/// Who may find a tree's nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// All requests with this salt; the empty one is a salt too.
    Salted(Arc<str>),
    /// One sequence only: prefix caching is off.
    Alone(SeqId),
}

/// One block's tokens behind those of its parents.
#[derive(Clone, Debug)]
pub struct Node {
    /// `None` for a root.
    pub parent: Option<NodeId>,
    /// A full block's tokens, or those of a leaf that is not full; empty for a root.
    pub tokens: Arc<[u32]>,
    /// By their tokens: the longest common beginning with any tokens is that of a neighbour in this order.
    pub children: BTreeMap<Arc<[u32]>, NodeId>,
    /// On the device.
    pub block: Option<u32>,
    /// In host memory.
    pub host: Option<u32>,
    /// Sequences that hold the block.
    pub holders: usize,
    /// Preempted sequences that will come back for it.
    pub waiting: usize,
    /// Thinking, or behind thinking: of no use to a next turn whose template strips it.
    pub behind_thinking: bool,
    /// The step that fills the block; contents may be copied in later ones.
    pub filled: u64,
    used: u64,
    depth: u32,
    /// Children with a block on the device.
    on_device: usize,
    /// Its place in the order of eviction, if it may go.
    listed: Option<Rank>,
}

/// The order of eviction, first to go first: class, then the least recently used, then the deepest.
type Rank = (u8, u64, Reverse<u32>);

impl Node {
    /// Its rank, if nobody holds the block and no block below needs it.
    fn rank(&self) -> Option<Rank> {
        let free = self.block.is_some() && self.holders == 0 && self.on_device == 0;
        let class = match (self.host.is_some(), self.waiting > 0, self.behind_thinking) {
            (true, ..) => 0,
            (_, true, _) => 3,
            (.., true) => 1,
            (.., false) => 2,
        };
        free.then_some((class, self.used, Reverse(self.depth)))
    }
}

/// What of a log is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Nodes of the full blocks at its beginning.
    pub path: Vec<NodeId>,
    /// A node whose first tokens, so many, come next.
    pub partial: Option<(NodeId, usize)>,
}

/// All tenants' trees.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: HashMap<NodeId, Node>,
    roots: HashMap<Tenant, NodeId>,
    tenants: HashMap<NodeId, Tenant>,
    evictable: BTreeSet<(Rank, NodeId)>,
    cached: usize,
    next: u64,
    /// The present step.
    pub clock: u64,
}

impl Tree {
    /// Blocks on the device that nobody holds.
    pub fn cached(&self) -> usize {
        self.cached
    }
    /// A node. Panics if it is gone: who keeps ids of nodes that may go asks [`Tree::get`].
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }
    /// A node, if it is still there.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// The root of a tenant, made if it has none.
    pub fn root(&mut self, tenant: &Tenant) -> NodeId {
        if let Some(root) = self.roots.get(tenant) {
            return *root;
        }
        let root = self.add(None, Arc::from([]), Part::Prompt, None, 0);
        self.roots.insert(tenant.clone(), root);
        self.tenants.insert(root, tenant.clone());
        root
    }

    /// How much of `log[..limit]` is there. Nothing is held by that.
    pub fn find(&self, tenant: &Tenant, log: &[u32], limit: usize, block_size: usize) -> Found {
        let mut found = Found::default();
        let Some(mut at) = self.roots.get(tenant).copied() else { return found };
        let mut begin = 0;
        while begin + block_size <= limit
            && let Some(child) = self.child(at, &log[begin..begin + block_size])
        {
            at = child;
            begin += block_size;
            found.path.push(at);
        }
        let next = &log[begin..log.len().min(begin + block_size)];
        found.partial = self
            .neighbours(at, next)
            .filter(|(_, node)| node.filled < self.clock)
            .map(|(id, node)| (id, common(&node.tokens, &log[begin..limit])))
            .filter(|(_, common)| *common > 0)
            .max_by_key(|(id, common)| (*common, Reverse(*id)));
        found
    }

    /// The child with exactly these tokens.
    pub fn child(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        self.nodes[&parent].children.get(tokens).copied()
    }

    /// The children beside `tokens` in order, itself included: one of them shares the longest beginning.
    pub fn neighbours(&self, parent: NodeId, tokens: &[u32]) -> impl Iterator<Item = (NodeId, &Node)> {
        let children = &self.nodes[&parent].children;
        let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(tokens))).next_back();
        let behind = children.range::<[u32], _>((Bound::Included(tokens), Bound::Unbounded)).next();
        before.into_iter().chain(behind).map(|(_, id)| (*id, &self.nodes[id]))
    }

    /// A leaf that `tokens` begin with and that nobody holds: whoever finds it finds them as well.
    pub fn shorter(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        let (id, node) = self.neighbours(parent, tokens).next()?;
        let begins = node.tokens.len() < tokens.len() && tokens.starts_with(&node.tokens);
        (begins && node.holders == 0).then_some(id)
    }
    /// A child that begins with `tokens`.
    pub fn longer(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        self.neighbours(parent, tokens).find(|(_, n)| n.tokens.starts_with(tokens)).map(|(id, _)| id)
    }

    /// A new child, held by nobody; `filled` is the step that fills its block.
    pub fn insert(&mut self, parent: NodeId, tokens: &[u32], part: Part, block: u32, filled: u64) -> NodeId {
        let id = self.add(Some(parent), Arc::from(tokens), part, Some(block), filled);
        self.refresh(id);
        self.refresh(parent);
        id
    }

    fn add(
        &mut self,
        parent: Option<NodeId>,
        tokens: Arc<[u32]>,
        part: Part,
        block: Option<u32>,
        filled: u64,
    ) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        let (mut behind_thinking, mut depth) = (part == Part::Thinking, 0);
        if let Some(above) = parent.and_then(|p| self.nodes.get_mut(&p)) {
            assert!(above.children.insert(tokens.clone(), id).is_none(), "a child twice");
            above.on_device += usize::from(block.is_some());
            behind_thinking |= above.behind_thinking;
            depth = above.depth + 1;
        }
        self.cached += usize::from(block.is_some());
        let node = Node {
            parent,
            tokens,
            children: BTreeMap::new(),
            block,
            host: None,
            holders: 0,
            waiting: 0,
            behind_thinking,
            filled,
            used: self.clock,
            depth,
            on_device: 0,
            listed: None,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Puts a node in or out of the order of eviction, as its state says.
    fn refresh(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let rank = node.rank();
        let old = std::mem::replace(&mut node.listed, rank);
        if old == rank {
            return;
        }
        old.map(|rank| self.evictable.remove(&(rank, id)));
        rank.map(|rank| self.evictable.insert((rank, id)));
    }

    fn change<T>(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> T) -> T {
        let node = self.nodes.get_mut(&id).expect("a node in use is there");
        let held = node.holders > 0;
        let out = change(node);
        match (held, node.holders > 0) {
            (false, true) => self.cached -= usize::from(node.block.is_some()),
            (true, false) => self.cached += usize::from(node.block.is_some()),
            _ => {}
        }
        self.refresh(id);
        out
    }

    /// One more sequence holds it.
    pub fn hold(&mut self, id: NodeId) {
        let clock = self.clock;
        self.change(id, |n| {
            n.holders += 1;
            n.used = clock;
        });
    }
    /// One less does.
    pub fn let_go(&mut self, id: NodeId) {
        let clock = self.clock;
        self.change(id, |n| {
            n.holders -= 1;
            n.used = clock;
        });
    }
    /// It was of use, though nobody came to hold it.
    pub fn touch(&mut self, id: NodeId) {
        let clock = self.clock;
        self.change(id, |n| n.used = clock);
    }
    /// A preempted sequence will come back for it.
    pub fn await_it(&mut self, id: NodeId) {
        self.change(id, |n| n.waiting += 1);
    }
    /// That sequence is back, or will not come. Nothing happens where the node is gone.
    pub fn unawait(&mut self, id: NodeId) {
        if self.nodes.contains_key(&id) {
            self.change(id, |n| n.waiting -= 1);
        }
    }
    /// A copy of the block lies in host memory now, or does no more.
    pub fn set_host(&mut self, id: NodeId, host: Option<u32>) -> Option<u32> {
        self.change(id, |n| std::mem::replace(&mut n.host, host))
    }

    /// A node without a block gets one, whose contents are there from the step `filled` on.
    pub fn set_block(&mut self, id: NodeId, block: u32, filled: u64) {
        let node = self.nodes.get_mut(&id).expect("a node in use is there");
        assert!(node.block.replace(block).is_none(), "a node has one block");
        node.filled = filled;
        let (held, parent) = (node.holders > 0, node.parent.expect("roots have no block"));
        self.cached += usize::from(!held);
        self.nodes.get_mut(&parent).expect("parents outlive their children").on_device += 1;
        self.refresh(id);
        self.refresh(parent);
    }

    /// Takes the block that is needed least from its node; the node stays where host memory has a copy. Returns
    /// the block, and host places of nodes that went with it. `None` if somebody holds every block.
    pub fn evict(&mut self) -> Option<(u32, Vec<u32>)> {
        let (_, id) = *self.evictable.first()?;
        let node = self.node(id);
        let block = node.block.expect("only nodes with blocks are listed");
        if node.host.is_none() {
            return Some((block, self.remove(id)));
        }
        self.take_block(id);
        Some((block, Vec::new()))
    }

    fn take_block(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("a node in use is there");
        assert_eq!(node.holders, 0, "a held block stays");
        let had = usize::from(node.block.take().is_some());
        let parent = node.parent.expect("roots have no block");
        self.cached -= had;
        self.nodes.get_mut(&parent).expect("parents outlive their children").on_device -= had;
        self.refresh(id);
        self.refresh(parent);
    }

    /// Removes a node that nobody holds, with all below it, which have no blocks on the device. Its own block is
    /// the caller's now; returns the places in host memory that are free.
    pub fn remove(&mut self, id: NodeId) -> Vec<u32> {
        self.take_block(id);
        let parent = self.node(id).parent.expect("roots stay as long as anything is below them");
        let mut hosts = Vec::new();
        let mut below = vec![id];
        while let Some(id) = below.pop() {
            let node = self.nodes.remove(&id).expect("a child is there");
            assert!(node.block.is_none() && node.holders == 0, "what is removed is of no use to anybody");
            below.extend(node.children.values());
            hosts.extend(node.host);
            if let Some(parent) = node.parent.and_then(|p| self.nodes.get_mut(&p)) {
                parent.children.remove(&node.tokens);
            }
        }
        // A tenant that left nothing is forgotten.
        if self.node(parent).children.is_empty()
            && let Some(tenant) = self.tenants.remove(&parent)
        {
            self.roots.remove(&tenant);
            self.nodes.remove(&parent);
        }
        hosts
    }

    /// Removes everything of a tenant, which nobody holds. Returns its blocks and places in host memory.
    pub fn drop_tenant(&mut self, tenant: &Tenant) -> (Vec<u32>, Vec<u32>) {
        let (mut blocks, mut hosts) = (Vec::new(), Vec::new());
        let Some(root) = self.roots.remove(tenant) else { return (blocks, hosts) };
        self.tenants.remove(&root);
        let mut below = vec![root];
        while let Some(id) = below.pop() {
            let node = self.nodes.remove(&id).expect("a child is there");
            assert_eq!(node.holders, 0, "a tenant in use stays");
            node.listed.map(|rank| self.evictable.remove(&(rank, id)));
            self.cached -= usize::from(node.block.is_some());
            blocks.extend(node.block);
            hosts.extend(node.host);
            below.extend(node.children.values());
        }
        (blocks, hosts)
    }

    /// The host copy that is needed least: of a node that no preempted sequence waits for. It is let go; a node
    /// that had nothing else goes, with all below it.
    pub fn drop_host(&mut self) -> Vec<u32> {
        let spare = self.nodes.iter().filter(|(_, n)| n.host.is_some() && n.waiting + n.holders == 0);
        let Some((id, node)) = spare.min_by_key(|(id, n)| (n.used, Reverse(n.depth), **id)) else { return Vec::new() };
        match (*id, node.block.is_some()) {
            (id, true) => self.set_host(id, None).into_iter().collect(),
            (id, false) => self.remove(id),
        }
    }

    /// Counts again; the error says what does not agree.
    pub fn check(&self) -> Result<(), String> {
        let (mut cached, mut listed) = (0, 0);
        for (id, node) in &self.nodes {
            let wrong = |what: &str| Err(format!("node {} {what}: {node:?}", id.0));
            let children: Vec<&Node> = node.children.values().map(|c| &self.nodes[c]).collect();
            cached += usize::from(node.block.is_some() && node.holders == 0);
            listed += usize::from(node.listed.is_some());
            if children.iter().filter(|c| c.block.is_some()).count() != node.on_device {
                return wrong("miscounts its children");
            }
            if children.iter().any(|c| c.parent != Some(*id)) {
                return wrong("has another's child");
            }
            if node.rank() != node.listed || node.listed.is_some_and(|r| !self.evictable.contains(&(r, *id))) {
                return wrong("is listed wrongly");
            }
            let Some(parent) = node.parent else { continue };
            let above = &self.nodes[&parent];
            if node.block.is_none() && (node.host.is_none() || node.on_device > 0) {
                return wrong("has nothing, or less than its children");
            }
            if node.holders > above.holders && above.parent.is_some() {
                return wrong("is held by more than its parent");
            }
            if above.children.get(&node.tokens) != Some(id) {
                return wrong("is not among its parent's children");
            }
        }
        if cached != self.cached || listed != self.evictable.len() {
            return Err(format!("{cached} cached, counted {}; {listed} listed", self.cached));
        }
        Ok(())
    }
}

/// Length of the common beginning.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
